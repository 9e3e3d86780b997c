"""Write amplification of the tier's translation layer under uniform random overwrites, against the closed form.

Desnoyers, "Analytic modeling of SSD write performance", SYSTOR 2012 (doi 10.1145/2367589.2367603), equation 12, for greedy
collection: A(alpha) = L(k alpha) / k with k = 1 + 1 / (2 pages per block), where L(x) = 1 / (1 - u) and u = exp(-x (1 - u))
(equation 4; there, by Lambert's W). alpha is physical over logical pages, here without the block that is kept free.
Prints JSON, then a table. No clock is involved: the figures are the same on every machine.

    tools/bench write-amplification
"""

import json
import math
import random

from rich.console import Console
from rich.table import Table

from hbf_fuse.tier.translation import Translation

BLOCKS = 1024
OVER_PROVISIONING_PCT = (7, 15, 28)
PAGES_PER_BLOCK = (64, 256)
SETTLING, COUNTED = 4, 4
"""How often the whole medium is written before counting, and while counting."""


def main() -> None:
    rows = [_row(percent, pages) for percent in OVER_PROVISIONING_PCT for pages in PAGES_PER_BLOCK]
    print(json.dumps(rows, indent=1))
    table = Table("over-provisioning %", "pages a block", "measured", "closed form", "error %")
    for row in rows:
        table.add_row(*(f"{value:g}" for value in row.values()))
    Console(stderr=True).print(table)


def _row(percent: int, pages: int) -> dict[str, float]:
    logical = (BLOCKS - 1) * pages * 100 // (100 + percent)
    found = measured(logical, BLOCKS, pages)
    form = greedy((BLOCKS - 1) * pages / logical, pages)
    return {
        "over_provisioning_pct": percent,
        "pages_per_block": pages,
        "measured": round(found, 4),
        "closed_form": round(form, 4),
        "error_pct": round((found / form - 1) * 100, 2),
    }


def measured(logical: int, blocks: int, pages: int, seed: int = 1) -> float:
    """Pages programmed for each page written, once uniform random overwrites have settled."""
    translation, draw = Translation(logical, blocks, pages), random.Random(seed)  # noqa: S311
    for page in range(logical):
        translation.write(page)
    for _ in range(SETTLING * blocks * pages):
        translation.write(draw.randrange(logical))
    host, medium = translation.host_pages, translation.medium_pages
    for _ in range(COUNTED * blocks * pages):
        translation.write(draw.randrange(logical))
    return (translation.medium_pages - medium) / (translation.host_pages - host)


def greedy(alpha: float, pages: int) -> float:
    """The closed form; see above."""
    k = 1 + 1 / (2 * pages)
    valid = 0.0
    for _ in range(10_000):
        valid = math.exp(-k * alpha * (1 - valid))
    return 1 / (1 - valid) / k


if __name__ == "__main__":
    main()
