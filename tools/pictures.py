"""Makes the two pictures of the front page from the real output of commands.

docs/report.png: the top of a results folder's report.html, as Chromium shows it.
docs/top.svg: `hbf top` of a mount whose model is being read.
"""

import argparse
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

from hbf_fuse.models import choice

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
HBF = [sys.executable, "-P", "-m", "hbf_fuse"]
WIDTH, HEIGHT = 1100, 930
"""Size of the report's picture, in pixels."""

COLUMNS = 72
MOST_BYTES = 200_000
COLOURS = 64
_SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
{styles}</style>
<defs>
<clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/></clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""  # noqa: E501
"""rich's own template loads a font from a server."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, nargs="?", default=ROOT / "results/demo")
    parser.add_argument("-m", "--model", type=Path, help="for hbf top; default: as for hbf-mount")
    parser.add_argument("--only", choices=("report", "top"))
    options = parser.parse_args()
    if options.only != "top":
        report(options.results / "report.html", DOCS / "report.png")
    if options.only != "report":
        (DOCS / "top.svg").write_text(terminal(top(options.model or choice.resolve(None, print))))


def report(page: Path, picture: Path) -> None:
    """Draw the top of a report. A report has few colours, so the picture has, too."""
    from playwright import sync_api

    found = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_api.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        tab.goto(page.absolute().as_uri())
        shot = tab.screenshot()
        browser.close()
    with Image.open(io.BytesIO(shot)) as image:
        image.convert("RGB").quantize(COLOURS).save(picture, optimize=True)
    assert picture.stat().st_size < MOST_BYTES, f"{picture} has {picture.stat().st_size} bytes"


def top(model: Path) -> str:
    """The output of `hbf top` for a mount while a program reads it."""
    with tempfile.TemporaryDirectory(prefix="hbf-pictures-") as name:
        point = Path(name) / "hbf"
        point.mkdir()
        tier = ["--mbps", "200", "--lat", "0.1", "--resident", "48M", "--policy", "fifo"]
        subprocess.run([*HBF, "mount", *tier, str(model), str(point)], check=True)
        again = f"while cat {shlex.quote(str(point / 'model.gguf'))} >/dev/null; do :; done"
        reader = subprocess.Popen(["sh", "-c", again], start_new_session=True)  # noqa: S607
        try:
            line = [*HBF, "top", "--count", "2", "--interval", "2", str(point)]
            environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
            shown = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
        finally:
            os.killpg(reader.pid, signal.SIGKILL)
            reader.wait()
            subprocess.run([*HBF, "umount", "--force", str(point)], check=True)
        last = _without_orders(shown.stdout)
        last = last[last.rindex(str(point)) :]
        # The usual path of a mount.
        return last.replace(str(point), "/mnt/hbf")


def terminal(shown: str) -> str:
    """A picture of a terminal's text."""
    text = Text.from_ansi(shown.strip("\n"))
    screen = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    screen.print(text)
    return screen.export_svg(title="hbf top /mnt/hbf", code_format=_SVG, unique_id="top")


def _without_orders(shown: str) -> str:
    """A terminal's text and colours, without cursor movements."""
    return re.sub(r"\x1b\[[\d?]*[A-Zhl]", "", shown).replace("\r", "")


if __name__ == "__main__":
    main()
