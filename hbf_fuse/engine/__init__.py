"""Chooses how a filesystem object reaches the kernel. Engines translate; they decide nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from hbf_fuse.engine.kernel import mounting
from hbf_fuse.errors import HbfError
from hbf_fuse.fs import Filesystem

ENGINES = ("kernel", "fusepy")


class Engine(Protocol):
    """A filesystem on a mountpoint. start() and stop() raise HbfError; serving happens in threads."""

    beats: bool
    """Whether it tells the pacer itself that the server does not stand still; see Pacer.next_beat."""

    def start(self, directory: int, mounted: Callable[[int], None] = lambda number: None) -> None:
        """Mount over the mountpoint's directory, which is open, and serve; returns when the kernel has been
        answered for the first time. mounted: called with the mount's id as soon as there is one.
        """

    def join(self, timeout: float | None = None) -> bool:
        """Wait until the mount has ended, by whom ever. False if the time ran out first."""

    def stop(self, lazy: bool) -> None:
        """Unmount. A busy mount is an HbfError, unless lazy: it is hidden and ends with its last user."""


def create(name: str, fs: Filesystem, mountpoint: Path, allow_other: bool, async_dio: bool = False) -> Engine:
    """The engine by name, or an HbfError that says what its binding needs.

    async_dio: pass on the parts of a large O_DIRECT read at the same time. The price: whoever is killed in
    such a read ends when the tier has answered. libfuse 2 knows no such thing.
    """
    if allow_other:
        mounting.require_user_allow_other()
    if name == "kernel":
        from hbf_fuse.engine.kernel.engine import KernelEngine

        return KernelEngine(fs, mountpoint, allow_other, async_dio)
    if name == "fusepy":
        from hbf_fuse.engine.fusepy import FusepyEngine

        return FusepyEngine(fs, mountpoint, allow_other)
    raise HbfError(f"unknown engine {name!r}; there are: {', '.join(ENGINES)}")
