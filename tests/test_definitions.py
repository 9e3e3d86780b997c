"""docs/definitions.md defines every column of cells.csv, and nothing else."""

import re
from pathlib import Path

from hbf_fuse import documents
from hbf_fuse.runs import results
from hbf_fuse.runs.schema import run_of

PAGE = Path(__file__).parents[1] / "docs/definitions.md"
STREAM = Path(__file__).parent / "data/run-stream.json"


def test_every_column_is_defined_and_nothing_else():
    table = PAGE.read_text().partition("|---|---|")[2].partition("\n\n")[0]
    defined = [
        name for line in table.splitlines() for name in re.findall(r"`([\w<>]+)`", line.split(" | ")[0])
    ]
    run = run_of(documents.read_json(STREAM))
    columns = [re.sub(r"^(pp|tg)\d+$", r"\1<N>", name) for name in results.row(run)]
    assert len(set(defined)) == len(defined)
    assert set(defined) == set(columns)
