"""The connection to a Dask scheduler."""

import importlib.metadata
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from hbf_fuse.cluster import cores
from hbf_fuse.errors import HbfError

if TYPE_CHECKING:
    from distributed import Client

Result = TypeVar("Result")

PACKAGE = "hbf-fuse"
RUNNING = "running"
CONNECT_SECONDS = 10
_ADDRESS = re.compile(r"(?:(?:tcp|tls|ws|wss)://)?[^/\s]+:[0-9]{1,5}")
_MOST_TOGETHER = 64
"""Items in a task at most."""


@contextmanager
def connected(address: str) -> "Iterator[Client]":
    """A client of the scheduler at an address such as tcp://host:8786. HbfError if it cannot be reached, also
    later.
    """
    if not _ADDRESS.fullmatch(address):
        # Dask would take half a minute to say so.
        raise HbfError(f"{address} is no address of a Dask scheduler", "write it like tcp://HOST:8786")
    try:
        from distributed import Client
    except ImportError as error:
        raise HbfError(
            f"--on needs {error.name}", "`pip install 'hbf-fuse[dask]'` brings it, here and on the workers"
        ) from error
    # They would tell of every lost connection, with a traceback. What matters is told by us.
    for name in ("distributed", "distributed.client"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False, name="hbf")
    except (OSError, ValueError, TypeError) as error:
        raise HbfError(
            f"no Dask scheduler answers at {address}",
            "start one with `dask scheduler`, and name it like tcp://HOST:8786",
        ) from error
    with client:
        try:
            yield client
        except (OSError, TimeoutError) as error:
            if client.status == RUNNING:
                raise
            raise HbfError(
                f"the scheduler at {address} is gone", "start it again; the same command goes on"
            ) from error


def workers(client: "Client") -> dict[str, dict[str, Any]]:
    """What the scheduler knows of its workers, by address. OSError if it is gone."""
    require(client)
    known: dict[str, dict[str, Any]] = client.scheduler_info(n_workers=-1).get("workers", {})
    require(client)
    return {str(address): dict(about) for address, about in known.items()}


def require(client: "Client") -> None:
    """ConnectionError if the scheduler is gone: what was sent to it is lost, also if it comes back."""
    if client.status != RUNNING:
        raise ConnectionError


def name_of(about: dict[str, Any], address: str) -> str:
    """What a worker is called: the name that it was given (`dask worker --name`), or its address."""
    name = str(about.get("name") or address)
    return address if name == address else name


def refused(client: "Client", addresses: Sequence[str]) -> dict[str, str]:
    """Why workers cannot be used, by address: they have another version of this package than this side."""
    own = importlib.metadata.version(PACKAGE)
    # A function of the standard library: it is there whatever is installed.
    found = client.run(importlib.metadata.version, PACKAGE, workers=list(addresses), on_error="return")
    return {address: _refusal(version, own) for address, version in found.items() if version != own}


def _refusal(version: Any, own: str) -> str:
    if isinstance(version, str):
        return f"it has {PACKAGE} {version}, not {own}"
    if isinstance(version, importlib.metadata.PackageNotFoundError):
        return f"it has no {PACKAGE}"
    return f"it does not answer: {version}"


def over(function: Callable[..., Result], items: Sequence[tuple[Any, ...]], address: str) -> Iterator[Result]:
    """function(*item) of each, in the order of the items, by all workers. HbfError if one cannot be used."""
    with connected(address) as client:
        from distributed import KilledWorker

        known = workers(client)
        if not known:
            raise HbfError(f"the scheduler at {address} has no workers", "start some with `dask worker`")
        if unfit := refused(client, list(known)):
            told = "; ".join(f"{name_of(known[each], each)}: {why}" for each, why in unfit.items())
            raise HbfError(f"workers that cannot be used: {told}", f"install the same {PACKAGE} everywhere")
        pieces = cores.in_pieces(items, _MOST_TOGETHER, len(known))
        shared = client.scatter(function, broadcast=True, hash=False)
        futures = client.map(_each, pieces, function=shared, pure=False)
        try:
            for future in futures:
                yield from future.result()
        except (CancelledError, KilledWorker) as error:
            require(client)
            raise HbfError(
                "workers that computed were lost, and what they had", "give the same command again"
            ) from error
        finally:
            client.cancel(futures)


def _each(items: Sequence[tuple[Any, ...]], function: Callable[..., Result]) -> list[Result]:
    """A worker's part."""
    return [function(*item) for item in items]
