"""Tables that `hbf kv` prints and stores."""

import csv
import io

from hbf_fuse.cli.common import print_json
from hbf_fuse.documents import Row, inert_cell


def print_rows(rows: list[Row], as_json: bool) -> None:
    from hbf_fuse.report.tables import table

    if as_json:
        print_json(rows)
    else:
        print(table(tuple(rows[0]), rows))


def as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), restval="")
    writer.writeheader()
    writer.writerows({key: inert_cell(value) for key, value in row.items()} for row in rows)
    return text.getvalue()
