"""What the device refuses."""


class SpecError(ValueError):
    """A tier that cannot be: says which parameter, its value and what is allowed."""
