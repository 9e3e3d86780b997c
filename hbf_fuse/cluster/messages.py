"""What goes between a sweep and the workers that measure its cells, as JSON."""

from typing import Annotated, Any

from pydantic import Field

from hbf_fuse.runs.fields import Document, Text, Whole
from hbf_fuse.runs.run import RunCell


class Wanted(Document):
    """A model by its bytes. names: of its files, in order; size, sha256: of all their bytes in that order."""

    names: Annotated[list[Text], Field(min_length=1)]
    size: Whole
    sha256: Text


class Question(Document):
    """Can this machine measure such cells? cells: one of each kind. model_path: where a worker may have the
    model, a file or a folder.
    """

    model: Wanted
    model_path: Text
    cells: list[RunCell]


class Machine(Document):
    """The answer. host: what the machine calls itself. facts: see host/machine.py. envelope: what it can
    emulate, in words. concerns: what disturbs measurements on it. problems: why it cannot measure. model: the
    path of the model's first file there.
    """

    host: Text
    facts: dict[str, Any]
    envelope: Text = ""
    concerns: list[Text] = []
    problems: list[Text] = []
    model: Text = ""


class Task(Document):
    """One cell to measure. machine: what the worker is called in results."""

    cell: RunCell
    model: Text
    timeout_seconds: float
    concerns: list[Text]
    machine: Text
