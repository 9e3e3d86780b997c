"""Hooks for mkdocs: pages of the top folder are part of the site, too. mkdocs.yml cannot express this."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
TOP = ("SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the top folder."""
    for name in TOP:
        files.append(File.generated(config, name, content=(ROOT / name).read_text()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Adapt links between the two folders: the site has both in one. Its front page is docs/README.md."""
    within = re.sub(r"\]\((?:\.\./|docs/)([\w.-]+\.md(?:#[\w-]+)?)\)", r"](\1)", markdown)
    return within.replace("The front page is the [README](README.md) in the folder above.", "")
