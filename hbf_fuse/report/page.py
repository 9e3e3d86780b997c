"""report.md: the summary table with what it was measured on and what to be careful with."""

from typing import Any

from hbf_fuse.report import summary
from hbf_fuse.units import format_size


def markdown(documents: list[dict[str, Any]], target_seconds: float | None = None) -> str:
    """The whole page."""
    rows = summary.summarize(documents)
    return (
        "\n".join(["# Sweep", "", summary.markdown(rows), *_remarks(documents), "", *_environment(documents)])
        + "\n"
    )


def _remarks(documents: list[dict[str, Any]]) -> list[str]:
    lines = [
        "pp and tg are llama-bench's tokens/s; times are seconds; stage_eff and model_mbps are decimal MB/s.",
        "`valid` counts the repeats whose stage rate agrees with the tier model.",
        "",
    ]
    for document in documents:
        reason = document.get("error") or document.get("metrics", {}).get("why")
        if reason:
            lines.append(f"- {document['cell']['name']}: {reason}")
    return lines


def _environment(documents: list[dict[str, Any]]) -> list[str]:
    finished = [document for document in documents if "environment" in document]
    if not finished:
        return ["No cell was finished."]
    document = finished[0]
    machine, cell = document["environment"], document["cell"]
    return [
        "## Measured on",
        "",
        f"- {machine['cpu']}, {machine['cores']} cores, {format_size(machine['memory_bytes'])}, "
        f"Linux {machine['kernel']}, Python {machine['python']}, hbf-fuse {machine['hbf_fuse']}",
        f"- llama-bench {document['llama_bench']['version']}, "
        f"-p {cell['bench']['n_prompt']} -n {cell['bench']['n_gen']}",
        f"- a model of {format_size(cell['model']['size'])}, engine {cell['engine']}, mode {cell['mode']}",
    ]
