"""The error that a person is meant to read: one line saying what is wrong and what to do."""


class HbfError(Exception):
    """Anything the program cannot do, told in one line. The command line prints it and exits with 1."""
