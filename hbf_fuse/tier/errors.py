"""The error of the device."""


class SpecError(ValueError):
    """An impossible tier: names the parameter, its value and what is allowed."""
