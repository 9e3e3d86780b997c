"""llama-server under load: what a user waits for the first token, and what a batch buys."""

import asyncio
import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hbf_fuse.errors import HbfError
from hbf_fuse.traces.attribution import Phase
from hbf_fuse.workload import child, failure, load, stalls
from hbf_fuse.workload.llama import MMAP, BenchOptions, BenchRun
from hbf_fuse.workload.load import Answer, Level
from hbf_fuse.workload.program import SERVER

SOCKET = "server.sock"
INPUT_TOKENS, OUTPUT_TOKENS = 128, 32
"""Of a request, unless others are asked for."""

_CELL = 32
"""Tokens by which a slot's context is rounded up."""

_END_SECONDS = 10.0
_LOOK_SECONDS = child.LOOK_MS / 1000
_OURS = {
    **dict.fromkeys(("-m", "--model", "-t", "--threads"), "give it before the --"),
    **dict.fromkeys(("-c", "--ctx-size"), "it is --ctx-size, before the --"),
    **dict.fromkeys(("-np", "--parallel"), "it is --parallel, before the --"),
    **dict.fromkeys(("--host", "--port", "--reuse-port"), "hbf talks to it through a socket of its own"),
    **dict.fromkeys(("-lm", "--load-mode"), "give it before the --"),
    **dict.fromkeys(("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"), "the model is the one that is served"),
    **dict.fromkeys(("--api-key", "--api-key-file", "--api-prefix"), "nobody else can reach its socket"),
}
"""Options of llama-server that cannot stand after --, and what to do instead."""


@dataclass(frozen=True)
class ServeOptions:
    """How a server is loaded. concurrency: users at once, one level after the other. requests: of a level,
    rounded up to whole rounds of its users. ctx_size, parallel: llama-server's own, tokens and slots; with 0
    as many as are needed. seed: of the prompts. request_timeout: seconds.
    """

    concurrency: tuple[int, ...] = (1, 4, 8)
    requests: int = 8
    ctx_size: int = 0
    parallel: int = 0
    seed: int = 0
    request_timeout: float = 600.0

    @property
    def slots(self) -> int:
        """llama-server's --parallel."""
        return self.parallel or max(self.concurrency)

    def context(self, tokens: int) -> int:
        """llama-server's --ctx-size, for requests of so many tokens. HbfError if they do not fit into it."""
        each = math.ceil(tokens / _CELL) * _CELL
        if not self.ctx_size:
            return each * self.slots
        if self.ctx_size < each * self.slots:
            raise HbfError(
                f"a request takes {tokens} tokens of context, and --ctx-size {self.ctx_size} leaves "
                f"{self.ctx_size // self.slots} to each of {self.slots} slots",
                f"give at least --ctx-size {each * self.slots}, or fewer tokens or slots",
            )
        return self.ctx_size

    def requests_of(self, users: int) -> int:
        """How many a level has."""
        return math.ceil(self.requests / users) * users


@dataclass(frozen=True)
class ServeRun(BenchRun):
    """A server's life. Its first request stands for llama-bench: wall_seconds is from the process's start to
    its last token, load_seconds to when the server is ready. begun_ns: when the process started.
    ended_seconds: its age when it ended.
    """

    begun_ns: int
    cold: Answer
    levels: list[Level]
    ended_seconds: float

    @property
    def lifetime_seconds(self) -> float:
        return self.ended_seconds

    @property
    def cold_ttft_seconds(self) -> float:
        """From the start of the process to the first token."""
        return (self.cold.came_ns[0] - self.begun_ns) / 1e9


def check(options: BenchOptions) -> None:
    """HbfError for options that hbf gives itself, and for a load that llama-server cannot be asked for."""
    for word in options.extra:
        if (name := word.partition("=")[0]) in _OURS:
            raise HbfError(f"{name} cannot stand after --", _OURS[name])
    if not options.n_prompt or options.n_gen < 2:
        raise HbfError(
            "a request needs a prompt and at least two tokens", "give --input-tokens and --output-tokens"
        )


def command(
    binary: Path,
    model: Path,
    options: BenchOptions,
    serve: ServeOptions,
    socket: Path,
    known: Collection[str],
) -> list[str]:
    """The command line of one server. known: the flags of this build."""
    line = [str(binary), "-m", str(model), "--host", str(socket)]
    line += ["--ctx-size", str(serve.context(options.n_prompt + options.n_gen))]
    line += ["--parallel", str(serve.slots)]
    if options.threads:
        line += ["-t", str(options.threads)]
    if options.repack is not None and "--no-repack" in known:
        line += ["--repack" if options.repack else "--no-repack"]
    # The first request is to be the first use of the weights, and none is to find the work of another.
    switches = ("--no-warmup", "--no-cache-prompt", "--no-webui", "--offline")
    line += [switch for switch in switches if switch in known]
    if "--cache-ram" in known:
        line += ["--cache-ram", "0"]
    if "--load-mode" in known:
        line += ["--load-mode", options.load_mode]
    elif options.load_mode != MMAP and "--no-mmap" in known:
        line += ["--no-mmap"]
    return [*line, *options.extra]


def run(
    binary: Path,
    model: Path,
    options: BenchOptions,
    serve: ServeOptions,
    vocabulary: int,
    folder: Path,
    timeout_seconds: float,
    *,
    cold_only: bool = False,
    pass_fds: Sequence[int] = (),
    enter: Callable[[], None] | None = None,
    require: Callable[[], None] | None = None,
    environment: Mapping[str, str] = child.NO_VARIABLES,
    phase: Callable[[str], object] = lambda _: None,
    shown: str = "",
) -> ServeRun:
    """Start a server, send one request to it while it is cold, then load it level by level; end it.

    vocabulary: prompts are of tokens below this. folder: where its socket is made; nobody else may enter.
    cold_only: no levels. phase: called when another phase begins, with its name. timeout_seconds: for all of
    it. The others are as for llama.run. HbfError if the server does not start, ends, or fails the first
    request.
    """
    known = SERVER.flags(binary)
    # By descriptor: the name of a socket has 107 bytes at most, and a folder's may be longer.
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    socket = Path(f"/proc/self/fd/{opened}/{SOCKET}")
    socket.unlink(missing_ok=True)
    line = command(binary, model, options, serve, socket, known)
    life = _Life(options, serve, vocabulary, [] if cold_only else list(serve.concurrency), phase)
    begun_ns = time.monotonic_ns()
    try:
        with (
            stalls.counted() as watch,
            child.running(line, (*pass_fds, opened), watch, enter, require, True, environment) as server,
        ):
            try:
                asyncio.run(_supervised(server, life, socket, timeout_seconds))
            except _Ended:
                why = failure.reason(server.ended.stderr) or failure.last_line(server.ended.stderr)
                why = why.replace(str(model), shown or str(model))
                raise HbfError(f"llama-server ended while {life.doing}: {why}") from None
            server.terminate(_END_SECONDS)
    except OSError as error:
        raise HbfError(f"cannot run {binary}: {error.strerror}") from error
    finally:
        socket.unlink(missing_ok=True)
        os.close(opened)
    lifetime = server.ended.wall_seconds
    first, last = life.cold.came_ns[0], life.cold.came_ns[-1]
    return ServeRun(
        command=command(Path(binary.name), Path(shown or model), options, serve, Path(SOCKET), known),
        pp=None,
        tg=None,
        wall_seconds=(last - begun_ns) / 1e9,
        load_seconds=(life.cold.sent_ns - begun_ns) / 1e9,
        prefill_seconds=(first - life.cold.sent_ns) / 1e9,
        decode_seconds=(last - first) / 1e9,
        stalls=watch.metrics(lifetime),
        records=[],
        phases=life.phases(options),
        starved=watch.starved,
        begun_ns=begun_ns,
        cold=life.cold,
        levels=life.levels,
        ended_seconds=lifetime,
    )


def phase_of(users: int) -> str:
    """The name of a level's phase."""
    return f"{users} user{'s' if users > 1 else ''}"


class _Ended(Exception):
    """The server is no longer there."""


class _Life:
    """What a server is asked, and what came of it. doing: for an error."""

    def __init__(
        self,
        options: BenchOptions,
        serve: ServeOptions,
        vocabulary: int,
        levels: list[int],
        phase: Callable[[str], object],
    ) -> None:
        self._options, self._serve, self._wanted = options, serve, levels
        self._vocabulary = vocabulary
        self._phase = phase
        self.doing = "loading"
        self.cold = Answer(0, 0)
        self.levels: list[Level] = []

    async def lived(self, socket: Path) -> None:
        """All requests, from the first to the last. HbfError if the first one fails."""
        options, serve = self._options, self._serve
        prompts = load.prompts(self._vocabulary, options.n_prompt, serve.seed)
        self._phase("load")
        async with load.at_socket(socket, options.n_gen, serve.request_timeout) as server:
            await server.until_ready()
            self.doing = "answering the first request"
            self._phase("first request")
            self.cold = await server.ask(next(prompts))
            if self.cold.error:
                raise HbfError(f"llama-server failed the first request: {self.cold.error}")
            for users in self._wanted:
                self.doing = f"serving {phase_of(users)}"
                self._phase(phase_of(users))
                self.levels.append(await server.level(users, serve.requests_of(users), prompts))

    def phases(self, options: BenchOptions) -> list[Phase]:
        """What the server did when, for the attribution of reads."""
        first, last = self.cold.came_ns[0], self.cold.came_ns[-1]
        return [
            Phase("prefill", options.n_prompt, self.cold.sent_ns, first),
            Phase("decode", options.n_gen - 1, first, last),
            *(
                Phase(phase_of(level.concurrency), len(level.good), level.start_ns, level.end_ns)
                for level in self.levels
            ),
        ]


async def _supervised(server: child.Group, life: _Life, socket: Path, timeout_seconds: float) -> None:
    """The requests, while the server is looked after. _Ended if it ends by itself."""
    give_up = time.monotonic() + timeout_seconds
    asked = asyncio.create_task(life.lived(socket))
    try:
        while not (await asyncio.wait({asked}, timeout=_LOOK_SECONDS))[0]:
            if not server.look():
                raise _Ended
            if time.monotonic() > give_up:
                raise HbfError(
                    f"llama-server was not done within {timeout_seconds:g} s, while {life.doing} (--timeout)"
                )
        asked.result()
    except HbfError:
        # A server that has just ended fails its request: its own words say more.
        if not server.look(child.LOOK_MS):
            raise _Ended from None
        raise
    finally:
        asked.cancel()
