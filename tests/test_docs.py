"""The pages: every link leads somewhere, every page is listed, and the site builds."""

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import hbf_fuse

ROOT = Path(hbf_fuse.__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.glob("*.md")])
MOST_LINES = {"README.md": 120, "docs/design.md": 200}
MOST_PICTURE_BYTES = 200_000

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="not run from the source tree")


def without_code(text: str) -> str:
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "", text)


def links(page: Path) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text()))


def anchors(page: Path) -> set[str]:
    """Anchors of headings, as GitHub and mkdocs make them."""
    plain = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    lost = []
    for link in links(page):
        if ":" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert not lost


def test_every_page_is_listed_and_in_the_site():
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    listed = {Path(link.partition("#")[0]).name for link in links(DOCS / "README.md")}
    assert pages <= listed
    in_site = set(re.findall(r"^ +- .*: ([\w.-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    assert pages <= in_site


@pytest.mark.parametrize("name", MOST_LINES)
def test_pages_that_are_read_first_are_short(name):
    assert len((ROOT / name).read_text().splitlines()) < MOST_LINES[name]


def test_pictures_of_the_front_page_are_small_and_load_nothing():
    pictures = [ROOT / link for link in links(ROOT / "README.md") if link.endswith((".png", ".svg"))]
    assert len(pictures) >= 2
    for picture in pictures:
        assert picture.stat().st_size < MOST_PICTURE_BYTES
        if picture.suffix == ".svg":
            assert not re.search(r"url\((?!#)|href=\"http", picture.read_text())


def test_the_site_builds_without_a_warning(tmp_path):
    if not (find_spec("mkdocs") and find_spec("material")):
        pytest.skip("mkdocs-material is not installed; `pip install -e '.[docs]'`")
    # Built in a copy, since somebody may be looking at the site's own folder.
    for name in ("docs", "tools/docs_site.py", "mkdocs.yml", *(page.name for page in ROOT.glob("*.md"))):
        target = tmp_path / name
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, target)
    line = [sys.executable, "-P", "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")]
    built = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=110, check=False)
    assert not built.returncode, built.stderr
    assert (tmp_path / "site/design/index.html").exists() and (tmp_path / "site/SECURITY/index.html").exists()
