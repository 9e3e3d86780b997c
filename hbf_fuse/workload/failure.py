"""Why a llama.cpp program failed, in its own words."""

import re
from collections.abc import Sequence

MOST = 300
"""Characters of its words that are shown."""

_ASSERTION = re.compile(r"GGML_ASSERT\(.*")
_LOADING = re.compile(r"error loading model: (?P<why>.*)")
_FAILED = re.compile(r"^\w+: .*(?:failed|invalid|unsupported|unknown|missing|error)", re.IGNORECASE)
_EMPTY = re.compile(r"(?:llama_model_loader: )?failed to load model\b(?! *:)")
"""Says only that it failed."""

_LOGGED = re.compile(r"^[\d.]+ E (?:\w+ +(?=\w+: ))?(?P<why>.*)", re.MULTILINE)
"""An error in llama-server's log: the first one is the cause, the others follow from it."""

_ARGUMENT = re.compile(r"^error: .*", re.MULTILINE)
_DEBUGGER = re.compile(r"^(?:#\d|\d+\s|\[|Using host|warning: |Thread |\||$)")
"""Lines of the backtrace that GGML_ABORT prints, and of an empty table."""


def reason(output: str) -> str:
    """llama.cpp's own line that says why, or "": `error loading model: ...`, `GGML_ASSERT(...)`, or an option
    that it refused. output: what it printed on stderr, with -v if it knows that.
    """
    if found := _ASSERTION.search(output):
        return _short(found[0])
    if found := _LOGGED.search(output):
        return _short(found["why"])
    if found := _LOADING.search(output):
        if not _EMPTY.match(found["why"]):
            return _short(found[0])
        # The loader's own complaint stands before it.
        before = [line for line in output[: found.start()].splitlines() if _FAILED.match(line)]
        cause = next((line for line in before if not _EMPTY.search(line)), "")
        return _short(f"error loading model: {cause}") if cause else ""
    if found := _ARGUMENT.search(output):
        return _short(found[0])
    return ""


def last_line(*outputs: str) -> str:
    """The last line that is not of a backtrace or a table."""
    lines: Sequence[str] = "\n".join(outputs).splitlines()
    told = [line.strip() for line in lines if not _DEBUGGER.match(line.strip())]
    return _short(told[-1]) if told else "no message"


def _short(text: str) -> str:
    return text.strip()[:MOST]
