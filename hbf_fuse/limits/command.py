"""Runs a command under limits; no process that it started remains."""

from collections.abc import Callable, Sequence

from hbf_fuse.limits import group, process, scope
from hbf_fuse.limits.devices import Disk
from hbf_fuse.limits.files import Limits
from hbf_fuse.limits.hierarchy import NotPermitted


def run(
    line: Sequence[str], limits: Limits, disk: Disk | None, tell_in_force: Callable[[Limits], None]
) -> int:
    """Run to the end. Returns the exit code, 128 + n for signal n.

    tell_in_force: called with the limits as the kernel has them, before the command begins to run. The page
    cache is left as it is: cached data is read without limit. HbfError if the limits cannot be set,
    process.CannotStart if the command cannot be run.
    """
    process.check(line[0])
    try:
        with group.made(limits, disk) as made:
            tell_in_force(made.in_force())
            with process.started(line, made.enter) as command:
                return process.passed_through(command)
    except NotPermitted:
        if not scope.available():
            raise
    with scope.started(line, limits, disk) as (command, found):
        tell_in_force(found)
        return process.passed_through(command)
