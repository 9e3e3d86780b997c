"""Writes the pages that are generated from the code: `tools/pages`. Tests check that they are up to date."""

import argparse
import sys

from generated import manpages, troubleshooting, validation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, prog="tools/pages")
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 if a page is old")
    check = parser.parse_args().check
    pages = {
        **manpages.pages(),
        troubleshooting.PAGE: troubleshooting.page(),
        validation.PAGE: validation.page(),
    }
    old = [path for path, text in pages.items() if not path.exists() or path.read_text() != text]
    if check:
        sys.exit(f"not up to date: {', '.join(path.name for path in old)}; run tools/pages" if old else 0)
    for path in old:
        path.write_text(pages[path])
        print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
