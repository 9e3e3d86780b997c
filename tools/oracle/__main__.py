"""What llama.cpp allocates for the caches of GGUFs, as a CSV, and whether hbf-fuse's table says the same.

Only metadata is read: a GGUF may be without weights. Ends with 1 where the two differ.
"""

import argparse
import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import geometries

from hbf_fuse.errors import HbfError
from hbf_fuse.gguf import kv, read
from hbf_fuse.models.places import cache_dir
from hbf_fuse.workload import kv_oracle
from hbf_fuse.workload.kv_oracle import Question

TOOLS = Path(__file__).parent.parent
QUESTIONS = (
    Question(8192),
    Question(65_536),
    Question(5000, parallel=3, cache_type_k="q8_0", cache_type_v="q8_0"),
    Question(300, parallel=2, unified=True),
)
"""Each rounds something: contexts, shares of them, windows, and batches larger than a context."""

COLUMNS = ("model", *Question.__dataclass_fields__, "cache", "mib", "cells")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, prog="tools/kv_oracle", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", type=Path, nargs="*", help="GGUFs, or folders of them")
    parser.add_argument(
        "--made", action="store_true", help="those of tests/geometries.py: every architecture"
    )
    parser.add_argument(
        "--build", action="store_true", help="build the program that asks llama.cpp, if there is none"
    )
    parser.add_argument("-o", "--output", type=Path, help="write a CSV")
    options = parser.parse_args()
    try:
        binary = built() if options.build else kv_oracle.find()
        with tempfile.TemporaryDirectory(prefix="hbf-kv-oracle-") as made:
            if options.made:
                geometries.write(Path(made))
                options.paths.append(Path(made))
            rows, differing = asked(binary, list(models(options.paths)))
    except HbfError as error:
        sys.exit(f"kv_oracle: {error}")
    if options.output:
        with options.output.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    sys.exit(1 if differing else 0)


def models(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield from sorted(path.glob("*.gguf")) if path.is_dir() else [path]


def asked(binary: Path, paths: list[Path]) -> tuple[list[dict[str, Any]], int]:
    """A row a cache that llama.cpp makes, and how many answers differ from the table's."""
    rows: list[dict[str, Any]] = []
    same = differing = refused = 0
    for path in paths:
        for question in QUESTIONS:
            try:
                allocated = kv_oracle.ask(binary, path, question)
            except HbfError as error:
                print(f"{path.stem}: {error}", file=sys.stderr)
                refused += 1
                continue
            about = {"model": path.stem, **asdict(question)}
            rows += [about | asdict(cache) for cache in allocated]
            if not allocated:
                rows.append({**about, "cache": "none", "mib": "0.00", "cells": 0})
            wrong = difference(path, question, allocated)
            same, differing = same + (not wrong), differing + bool(wrong)
            if wrong:
                print(f"{path.stem}, {question}: {wrong}")
    asked_of = len({row["model"] for row in rows})
    print(
        f"{asked_of} models: {same} answers agree, {differing} differ, {refused} questions without an answer"
    )
    return rows, differing


def difference(path: Path, question: Question, allocated: list[kv_oracle.Allocated]) -> str:
    """What the table says instead; empty where it says the same."""
    try:
        parts = kv.parts(read(path), **asdict(question))
    except HbfError as error:
        return f"refused here: {error}"
    ours = [(part.nbytes, part.cells) for part in parts]
    if kv_oracle.agree(ours, allocated):
        return ""
    told = ", ".join(f"{part.kind} {kv_oracle.mib(part.nbytes)} of {part.cells}" for part in parts)
    return f"here {told}; llama.cpp {', '.join(f'{each.mib} of {each.cells}' for each in allocated)}"


def built() -> Path:
    """The program, linked with what tools/llama-bench-build keeps, beside its llama-bench."""
    made = subprocess.run(
        [str(TOOLS / "llama-bench-build"), "--keep-libs"], stdout=subprocess.PIPE, text=True, check=False
    )
    if made.returncode:
        raise HbfError("tools/llama-bench-build --keep-libs failed")
    folder = Path(made.stdout.strip()).parent
    target, kept = folder / kv_oracle.NAME, folder / "kept"
    assert folder.is_relative_to(cache_dir())
    line = ["c++", "-O1", "-std=c++17", f"-I{kept / 'include'}", str(TOOLS / "oracle/kv_oracle.cpp")]
    line += ["-Wl,--start-group", *map(str, sorted((kept / "lib").glob("*.a"))), "-Wl,--end-group"]
    new = folder / f"{kv_oracle.NAME}.new"
    if subprocess.run(
        [*line, "-o", str(new), "-fopenmp", "-lpthread", "-ldl", "-lm"], check=False
    ).returncode:
        raise HbfError(f"{TOOLS / 'oracle/kv_oracle.cpp'} does not build with {folder}")
    return new.rename(target)


if __name__ == "__main__":
    main()
