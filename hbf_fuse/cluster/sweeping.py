"""A sweep's cells on the workers of a Dask scheduler: one at a time on each machine.

Dask carries tasks and tells which workers there are. Which cell goes where is decided here, because a machine
is looked at before its first cell, and a cell whose machine died goes to another one.
"""

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hbf_fuse.cluster import carrier, scheduler
from hbf_fuse.cluster.carrier import RESOURCE
from hbf_fuse.cluster.messages import Machine, Question, Task, Wanted
from hbf_fuse.errors import HbfError
from hbf_fuse.host import machine
from hbf_fuse.runs.run import Run
from hbf_fuse.runs.schema import run_of
from hbf_fuse.sweep import loop
from hbf_fuse.sweep.cell import Cell, describe

if TYPE_CHECKING:
    from distributed import Client, Future

LOOK_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
"""A sweep without any worker waits so long for one."""

ANSWER_SECONDS = 30.0
"""Within which the answer of a task that has ended is here."""

ATTEMPTS = 2
"""Machines that may die with a cell before it counts as failed."""


@dataclass
class _Worker:
    """address: Dask's. about: what the scheduler knows. found: what the machine is, once it was looked at.
    cell: what it measures now. unfit: it gets no cells.
    """

    address: str
    about: dict[str, Any]
    future: "Future[Any] | None" = None
    found: Machine | None = None
    cell: Cell | None = None
    unfit: bool = False

    @property
    def name(self) -> str:
        """As results have it: the name that the worker was given, or its machine's."""
        name = scheduler.name_of(self.about, self.address)
        return self.found.host if self.found and name == self.address else name

    @property
    def host(self) -> str:
        """The machine, as far as it is known."""
        return f"{self.about.get('host')} {self.found.host if self.found else ''}"


@dataclass
class Sweep:
    """How cells are measured elsewhere; `runs` is a loop.Crew.

    model_path: where workers may have the model. strict: machines with any concern get no cells. tell: takes
    remarks for the person.
    """

    address: str
    model_path: str
    strict: bool
    tell: Callable[[str], None]
    patience_seconds: float = PATIENCE_SECONDS
    _workers: dict[str, _Worker] = field(default_factory=dict)
    _died: Counter[str] = field(default_factory=Counter)
    _was_usable: bool = False
    _problems: dict[str, str] = field(default_factory=dict)

    def runs(self, cells: Sequence[Cell]) -> Generator[Run, None, None]:
        """A run for each cell as it comes home. HbfError if no worker can measure."""
        if not cells:
            return
        with scheduler.connected(self.address) as client:
            try:
                yield from self._runs(client, deque(cells), _question(cells, self.model_path))
            finally:
                # A task that nobody waits for ends what it runs; see carrier.carry.
                client.cancel([each.future for each in self._workers.values() if each.future])

    def _runs(self, client: "Client", waiting: deque[Cell], question: Question) -> Iterator[Run]:
        last_seen = time.monotonic()
        while waiting or any(worker.cell for worker in self._workers.values()):
            yield from self._look(client, waiting, question)
            usable = [worker for worker in self._workers.values() if not worker.unfit]
            if usable:
                last_seen = time.monotonic()
            else:
                self._require_hope(time.monotonic() - last_seen)
            for worker in usable:
                if worker.found and not worker.cell and (cell := self._next_for(worker, waiting)):
                    self._send(client, worker, cell)
            _wait(client, [worker.future for worker in usable if worker.future])
            for worker in usable:
                if worker.future and worker.future.done():
                    yield from self._taken(client, worker, waiting, question)

    def _require_hope(self, alone_seconds: float) -> None:
        """HbfError if no worker will come any more: none that was there could be used, or none has come for
        long. Dask starts a worker again that has died.
        """
        if self._problems and not (self._was_usable and alone_seconds < self.patience_seconds):
            told = "; ".join(f"{name}: {why}" for name, why in self._problems.items())
            raise HbfError(
                f"no worker can measure this: {told}",
                "finished cells are kept; `hbf doctor` on such a machine says more",
            )
        if alone_seconds > self.patience_seconds:
            raise HbfError(
                f"the scheduler at {self.address} has no worker for sweeps",
                f"start some with `dask worker {self.address} --resources {RESOURCE}=1 --nthreads 1`",
            )

    def _look(self, client: "Client", waiting: deque[Cell], question: Question) -> Iterator[Run]:
        """Meet workers that have come, and take the cells of those that are gone."""
        there = scheduler.workers(client)
        for address in [address for address in self._workers if address not in there]:
            yield from self._lost(self._workers.pop(address), "is gone", waiting)
        new = {address: about for address, about in there.items() if address not in self._workers}
        fit = {
            address: about for address, about in new.items() if (about.get("resources") or {}).get(RESOURCE)
        }
        refused = scheduler.refused(client, list(fit)) if fit else {}
        for address, about in new.items():
            worker = self._workers[address] = _Worker(address, about)
            if address not in fit:
                worker.unfit = True
                self.tell(f"{worker.name} gets no cells: it was started without --resources {RESOURCE}=1")
            elif why := refused.get(address):
                self._leave_out(worker, why)
            else:
                worker.future = _submit(client, worker, question.model_dump(exclude_unset=True))

    def _next_for(self, worker: _Worker, waiting: deque[Cell]) -> Cell | None:
        """The next cell that this worker's machine did not die with, or any if there is no other machine."""
        alone = len({each.host for each in self._workers.values() if not each.unfit}) < 2
        for cell in waiting:
            if alone or not self._died[_death(cell, worker)]:
                waiting.remove(cell)
                return cell
        return None

    def _send(self, client: "Client", worker: _Worker, cell: Cell) -> None:
        assert worker.found  # noqa: S101 - the caller looked
        task = Task(
            cell=describe(cell),
            model=worker.found.model,
            timeout_seconds=cell.timeout_seconds,
            concerns=worker.found.concerns,
            machine=worker.name,
        )
        worker.cell = cell
        worker.future = _submit(client, worker, task.model_dump(exclude_unset=True))

    def _taken(
        self, client: "Client", worker: _Worker, waiting: deque[Cell], question: Question
    ) -> Iterator[Run]:
        """What a worker has answered. One that failed with a cell is looked at again."""
        future, worker.future = worker.future, None
        assert future  # noqa: S101 - the caller looked
        try:
            answer = future.result(timeout=ANSWER_SECONDS)
        except Exception as error:
            # Whatever went wrong there, Dask raises it here.
            scheduler.require(client)
            if isinstance(error, TimeoutError) and future.status != "error":
                # The worker ended before its answer was fetched, which the next looks will tell.
                worker.future = future
                return
            yield from self._failed(client, worker, str(error), waiting, question)
            return
        try:
            if worker.cell is None:
                self._met(worker, Machine.model_validate(answer))
                return
            run = run_of(answer)
            if run.cell != describe(worker.cell):
                raise ValueError("a run of another cell")
        except ValueError as error:
            yield from self._failed(client, worker, f"its answer is none: {error}", waiting, question)
        else:
            worker.cell = None
            yield run

    def _failed(
        self, client: "Client", worker: _Worker, why: str, waiting: deque[Cell], question: Question
    ) -> Iterator[Run]:
        """Take its cell, and look at it again. One that cannot even be looked at gets no cells."""
        if worker.cell is None:
            self._leave_out(worker, f"cannot be looked at: {why}")
            return
        yield from self._lost(worker, f"failed: {why}", waiting)
        worker.found = None
        worker.future = _submit(client, worker, question.model_dump(exclude_unset=True))

    def _met(self, worker: _Worker, found: Machine) -> None:
        """Say what a machine is, and whether it gets cells."""
        worker.found = found
        if found.problems:
            self._leave_out(worker, "; ".join(found.problems))
            return
        self.tell(f"{worker.name}: {machine.described(found.facts)}; envelope: {found.envelope}")
        for concern in found.concerns:
            self.tell(f"{worker.name}: {concern}")
        if self.strict and found.concerns:
            self._leave_out(worker, "--strict: " + "; ".join(found.concerns))
            return
        self._was_usable = True

    def _leave_out(self, worker: _Worker, why: str) -> None:
        worker.unfit = True
        self._problems[worker.name] = why
        self.tell(f"{worker.name} gets no cells: {why}")

    def _lost(self, worker: _Worker, why: str, waiting: deque[Cell]) -> Iterator[Run]:
        """Take the cell of a worker that cannot have measured it: for another one, or as failed."""
        if worker.future:
            worker.future.cancel()
        cell, worker.cell, worker.future = worker.cell, None, None
        self._problems.pop(worker.name, None)
        if cell or not worker.unfit:
            self.tell(f"{worker.name} {why}" + (f" with {cell.name}" if cell else ""))
        if cell is None:
            return
        self._died[_death(cell, worker)] += 1
        self._died[cell.name] += 1
        if self._died[cell.name] < ATTEMPTS:
            # Last: if it is the cell that ends workers, the others are measured by then.
            waiting.append(cell)
            return
        error = HbfError(f"{ATTEMPTS} workers failed with this cell, the last was {worker.name}: it {why}")
        yield loop.failed(describe(cell), error, loop.conditions_of([], machine=worker.name))


def _death(cell: Cell, worker: _Worker) -> str:
    return f"{cell.name} on {worker.host}"


def _question(cells: Sequence[Cell], model_path: str) -> Question:
    """About one cell of each kind: tokens and repeats need nothing of a machine."""
    kinds: dict[Any, Cell] = {}
    for cell in cells:
        tier = str(cell.spec)
        kinds.setdefault(
            (tier, cell.mode, cell.engine, cell.serve, cell.bench.load_mode, cell.bench.extra), cell
        )
    model = cells[0].model
    wanted = Wanted(names=[part.name for part in model.parts], size=model.size, sha256=model.sha256)
    return Question(model=wanted, model_path=model_path, cells=[describe(cell) for cell in kinds.values()])


def _submit(client: "Client", worker: _Worker, document: dict[str, Any]) -> "Future[Any]":
    future: Future[Any] = client.submit(
        carrier.carry,
        document,
        workers=[worker.address],
        allow_other_workers=False,
        resources={RESOURCE: 1},
        pure=False,
    )
    return future


def _wait(client: "Client", futures: "Sequence[Future[Any]]") -> None:
    """Until one is done, but no longer than until the workers are looked at again."""
    from distributed import wait

    if not futures:
        time.sleep(LOOK_SECONDS)
        return
    # A future is cancelled if its scheduler is gone, which the next look will tell.
    with suppress(TimeoutError, CancelledError), client.as_current():
        wait(futures, timeout=LOOK_SECONDS, return_when="FIRST_COMPLETED")
