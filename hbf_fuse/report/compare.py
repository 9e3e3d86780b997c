"""Two sweeps side by side."""

from typing import Any

from hbf_fuse.report import summary


def rows(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[dict[str, Any]]:
    raise NotImplementedError


def markdown(compared: list[dict[str, Any]], first: str, second: str) -> str:
    raise NotImplementedError(summary)
