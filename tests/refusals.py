"""Shared by tests of refusals."""

from collections.abc import Callable

import pytest


def error_of(act: Callable[[], object]) -> int | None:
    """The errno of a call that must fail."""
    with pytest.raises(OSError) as caught:
        act()
    return caught.value.errno
