"""Writes docs/kv-spill.md: what a tier must be for Qwen2.5-3B's KV cache, contexts against speeds.

tools/bench kv-spill
"""

from pathlib import Path
from typing import Any

from pages import mark

from hbf_fuse.kv import requirements
from hbf_fuse.kv.endurance import streams
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill, ceiling_tps
from hbf_fuse.report import spill_plots
from hbf_fuse.report.summary import table
from hbf_fuse.tier import TierSpec, profiles

DOCS = Path(__file__).parent.parent.parent / "docs"
KV_BYTES, LAYERS = 36_864, 36
"""Qwen2.5-3B at f16: 2 x 36 layers x 2 heads x 128 x 2 bytes; `hbf kv info` says the same."""

RESIDENT = 2048
COMPUTE_MS = (20.0, 100.0)
CONTEXTS = (4096, 8192, 16_384, 32_768, 65_536, 131_072)
TARGETS = (2.0, 5.0, 8.0, 10.0, 20.0)
LAT_MS = 0.02
PERCENTILE = 95
"""Of HBF no latency is published; papers use 1 to 30 us a page (docs: hbf profile show hbf-gen1)."""
JITTER = "exponential:0.01+tail:1e-4,2"

_INTRO = """# What KV spill asks of a tier

Qwen2.5-3B at f16 takes 36,864 bytes of keys and values a token. With {resident} tokens of them in DRAM, the rest
lives in the tier and every decoded token reads all of it: at a context of 131,072 tokens {gb:.2f} GB. How much
bandwidth does a decode speed need? By simulation (`hbf kv solve`; [simulation.md](simulation.md) holds it against mounts), for
{percentile}% of the tokens, at {lat:g} ms + jitter {jitter}, chunks of 1 MiB, 8 in flight, one layer of prefetch.

"""


def main() -> None:
    parts = [
        mark("kv-spill")
        + _INTRO.format(
            resident=RESIDENT,
            gb=(131_072 - RESIDENT) * KV_BYTES / 1e9,
            percentile=PERCENTILE,
            lat=LAT_MS,
            jitter=JITTER,
        )
    ]
    spec = TierSpec(None, LAT_MS, jitter=JITTER)
    for compute_ms in COMPUTE_MS:
        spills = [_spill(context, compute_ms) for context in CONTEXTS]
        rows = requirements.table(spills, spec, list(TARGETS), PERCENTILE)
        picture = f"kv-requirements-{compute_ms:g}ms.svg"
        (DOCS / picture).write_text(spill_plots.requirements(rows) + "\n")
        parts += [
            f"## Computing takes {compute_ms:g} ms a token\n",
            _matrix(rows),
            f"![MB/s needed]({picture})\n",
        ]
    parts += [_departure(), _profiles(), _endurance(), "Do it again: `tools/bench kv-spill`.\n"]
    (DOCS / "kv-spill.md").write_text("\n".join(parts))


def _spill(context: int, compute_ms: float, prefetch: int = 1) -> Spill:
    return Spill(KV_BYTES, LAYERS, context, RESIDENT, compute_ms / 1e3, prefetch=prefetch)


def _matrix(rows: list[dict[str, Any]]) -> str:
    shown = []
    for context in CONTEXTS:
        cells = {row["tps"]: row["least_mbps"] for row in rows if row["context"] == context}
        shown.append(
            {
                "MB/s for": f"{context:,} tokens",
                **{
                    f"{tps:g} tok/s": f"{mbps:,.0f}" if mbps is not None else "compute alone is slower"
                    for tps, mbps in cells.items()
                },
            }
        )
    return table(tuple(shown[0]), shown)


def _departure() -> str:
    """The reference's first-order ceiling against the full simulation."""
    rows = []
    for mbps in (500, 1000, 2000, 4000, 8000):
        spill = Spill(256_000, 2, 2, 1, 0.0, depth=1, chunk_bytes=128_000)
        spec = TierSpec(mbps, 0.05)
        first = ceiling_tps(256_000, spec, 2) or 0.0
        seconds = simulate(spill, spec).seconds
        full = len(seconds) / sum(seconds)
        computing = simulate(Spill(256_000, 2, 2, 1, 0.02, depth=1, chunk_bytes=128_000), spec)
        rows.append(
            {
                "MB/s": mbps,
                "ceiling": f"{first:.1f}",
                "simulated": f"{full:.1f}",
                "departs %": f"{(full / first - 1) * 100:+.2f}",
                "with 20 ms of computing": f"{computing.tps(50):.1f}",
            }
        )
    return (
        "## The first-order ceiling\n\n`hbf kv ceiling --kv-kb-per-token 256 --op-lat-ms 0.05 --ops-per-token 2`: "
        "1 / (operations x latency + bytes / bandwidth). The simulation of just that, two reads of 128 KB one "
        "after the other, agrees; computing, which it leaves out, is what decides.\n\n"
        f"{table(tuple(rows[0]), rows)}"
    )


def _profiles() -> str:
    rows = []
    for name in ("sata-ssd", "nvme-gen4", "nvme-gen5", "hbf-gen1"):
        spec = profiles.load(name).spec()
        row: dict[str, Any] = {"profile": name, "tier": str(spec)}
        for context in (8192, 32_768, 131_072):
            row[f"{context:,} tokens"] = (
                f"{simulate(_spill(context, COMPUTE_MS[0]), spec, tokens=8).tps(5):.3g}"
            )
        rows.append(row)
    about = f"tokens/s that 95% of the tokens reach, computing {COMPUTE_MS[0]:g} ms a token (at most 50)"
    return f"## Known devices\n\n{about}.\n\n{table(tuple(rows[0]), rows)}"


def _endurance() -> str:
    per_day = KV_BYTES * 8 * 86_400 / 1e9
    borne = streams(512, 100_000, per_day, 5)
    return (
        "## Endurance\n\nEach decoded token writes its 36,864 bytes once; they are read much, written once. At 8 "
        f"tokens/s day and night that is {per_day:.1f} GB a day; 100 such streams write {per_day * 100:,.0f} GB. "
        "Prefill writes whole contexts: 131,072 tokens are 4.8 GB. For scale: data centre SSDs are rated at 1 to 3 "
        "drive writes a day over 5 years (JEDEC JESD218 defines the rating; Samsung PM9A3: 1, PM1735: 3, by their data "
        "sheets), so 1 TB takes 1,000 to 3,000 GB a day. HBF's endurance is not published; papers assume 100,000 "
        "program and erase cycles (Kyung et al., IEEE CAL 2026, doi 10.1109/LCA.2026.3695938). With as many, writes spread "
        "evenly and no write amplification, a stack of 512 GB (hbf-gen1) bears "
        f"{borne:,.0f} such streams for 5 years (`hbf_fuse/kv/endurance.py`); at the 1 drive write a day of a "
        f"read-intensive SSD it would be {512 / per_day:.0f}.\n"
    )


if __name__ == "__main__":
    main()
