"""The error that a person is meant to read: one line saying what is wrong and what to do."""

import errno


class HbfError(Exception):
    """Anything the program cannot do, told in one line. The command line prints it and exits with 1."""


def in_one_line(error: OSError) -> str:
    """An error of the system that nothing closer to its cause has put into words, in one line."""
    if error.errno == errno.ENOENT and error.filename is None:
        return "the current directory is gone; go to another one (cd)"
    what = f"cannot use {error.filename or 'input or output'}: {error.strerror or error}"
    return f"{what}; docs/troubleshooting.md says where to look"
