"""What tests of refusals share."""

from collections.abc import Callable

import pytest


def error_of(act: Callable[[], object]) -> int | None:
    """The errno of what must fail."""
    with pytest.raises(OSError) as caught:
        act()
    return caught.value.errno
