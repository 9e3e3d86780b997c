"""From a run's JSON to the model of it."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hbf_fuse import documents
from hbf_fuse.errors import HbfError
from hbf_fuse.runs.run import Finished, Run


def run_of(document: Any) -> Run:
    """The run that a JSON value is. ValueError names the first thing that is wrong."""
    known = document.keys() if isinstance(document, dict) else ()
    if not {"metrics", "error"} & set(known):
        raise ValueError("it has neither metrics nor an error")
    try:
        return (Finished if "metrics" in known else Run).model_validate(document)
    except ValidationError as error:
        raise ValueError(first_of(error)) from error


def first_of(error: ValidationError) -> str:
    """The first thing that is wrong, and where."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:4]) or "it"
    return f"{where}: {first['msg'].removeprefix('Value error, ')}"


def read_run(path: Path) -> Run:
    """A run from its file. HbfError for what is none of ours, OSError if it cannot be read."""
    return checked(documents.read_json(path), path)


def checked(document: Any, path: Path) -> Run:
    """The run that a file holds; HbfError names the file."""
    try:
        return run_of(document)
    except ValueError as error:
        raise HbfError(f"{path} is not a run of this hbf: {error}") from error
