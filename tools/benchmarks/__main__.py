"""`tools/bench`: lists the measurements, or runs one of them."""

import ast
import runpy
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Bench:
    """takes: its time with its defaults, on 2 cores. script: the file's name, if it is another.
    needs_llama, needs_server: it needs a llama-bench, or a llama-server, which is built first.
    """

    takes: str
    script: str = ""
    needs_llama: bool = False
    needs_server: bool = False
    has_options: bool = True


BENCHES = {
    "reads": Bench("45 minutes"),
    "verdict": Bench("40 minutes"),
    "simulator": Bench("half a minute", has_options=False),
    "simulation": Bench("15 minutes", needs_llama=True),
    "detail": Bench("4 minutes"),
    "decode": Bench("50 minutes, or a minute", needs_llama=True),
    "real-disks": Bench("14 minutes", "real_disks", needs_llama=True),
    "cluster": Bench("5 minutes", needs_llama=True),
    "dram": Bench("9 minutes", needs_llama=True),
    "serving": Bench("25 minutes", needs_server=True),
    "shapes": Bench("4 minutes", needs_llama=True),
    "small-reads": Bench("5 minutes", "small_reads"),
    "stream": Bench("3 minutes"),
    "trace-cost": Bench("2 minutes", "trace_cost"),
    "residency": Bench("4 minutes"),
    "llama-speed": Bench("5 minutes", "llama_speed", needs_llama=True),
    "limits": Bench("4 minutes"),
    "kv-spill": Bench("a minute", "kv_spill", has_options=False),
    "kv-writes": Bench("a minute and a half", "kv_writes"),
    "memory": Bench("a minute"),
    "writes": Bench("5 minutes"),
    "slots": Bench("5 minutes", needs_server=True),
    "kv-offload": Bench("2 minutes", "kv_offload"),
    "kv-verify": Bench("10 minutes", "kv_verify"),
    "write-amplification": Bench("a minute", "write_amplification", has_options=False),
    "load": Bench("as long as told"),
    "reliability": Bench("20 minutes"),
    "findings": Bench("seconds, from results of `hbf sweep`", has_options=False),
}


def main() -> None:
    """Run the bench that is named."""
    name = sys.argv[1] if len(sys.argv) > 1 else ""
    if name not in BENCHES:
        _list()
        sys.exit(0 if name in ("", "-h", "--help") else f"bench: there is no {name!r}")
    bench = BENCHES[name]
    if not bench.has_options and {"-h", "--help"} & set(sys.argv[2:]):
        print(_about(name))
        return
    if bench.needs_llama:
        subprocess.run([str(HERE.parent / "setup"), "--llama"], check=True)
    if bench.needs_server:
        subprocess.run([str(HERE.parent / "llama-bench-build"), "--server"], check=True)
    sys.argv = [f"tools/bench {name}", *sys.argv[2:]]
    # An exception, as Ctrl-C is: then subprocess.run ends its command.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    runpy.run_path(str(_path(name)), run_name="__main__")


def _list() -> None:
    table = Table("bench", "what it measures", "takes", box=None, pad_edge=False)
    for name, bench in BENCHES.items():
        table.add_row(name, _about(name).splitlines()[0], bench.takes)
    Console().print(table)


def _about(name: str) -> str:
    return ast.get_docstring(ast.parse(_path(name).read_text())) or ""


def _path(name: str) -> Path:
    return HERE / f"{BENCHES[name].script or name}.py"


if __name__ == "__main__":
    main()
