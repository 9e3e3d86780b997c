"""A sentence of a report, with a code that scripts can rely on."""

from typing import Self


class Finding(str):
    """Reads as its sentence; empty where there is nothing to say."""

    code: str

    def __new__(cls, code: str, sentence: str) -> Self:
        """code: short and stable, such as `knee`."""
        finding = super().__new__(cls, sentence)
        finding.code = code
        return finding
