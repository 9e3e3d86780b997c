"""`hbf kv info`: the KV cache of a model."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hbf_fuse.cli.common import Json, print_json, tell
from hbf_fuse.cli.kv.options import CacheTypeK, CacheTypeV
from hbf_fuse.cli.paths import found
from hbf_fuse.errors import HbfError
from hbf_fuse.units import format_size

if TYPE_CHECKING:
    from hbf_fuse.gguf import GgufFile
    from hbf_fuse.gguf.kv import CachePart
    from hbf_fuse.workload.kv_oracle import Allocated, Question


def info(
    model: Annotated[Path, typer.Argument(help="A GGUF, hf:ORG/REPO:QUANT or ollama:NAME.", parser=found)],
    context: Annotated[
        int | None,
        typer.Option(
            "--context", help="Tokens, as llama.cpp's -c. \\[default: the model's]", min=1, max=100_000_000
        ),
    ] = None,
    parallel: Annotated[
        int,
        typer.Option(
            "--parallel", help="Sequences that share --context, as llama.cpp's -np.", min=1, max=256
        ),
    ] = 1,
    unified: Annotated[
        bool, typer.Option("--unified", help="They share one cache, as with llama.cpp's -kvu.")
    ] = False,
    ubatch: Annotated[int, typer.Option("--ubatch", help="llama.cpp's -ub.", min=1, max=2048)] = 512,
    cache_type_k: CacheTypeK = "f16",
    cache_type_v: CacheTypeV = "f16",
    ask_llama: Annotated[
        bool, typer.Option("--ask-llama", help="Also ask the llama.cpp that tools/kv_oracle has built.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show KV cache bytes per token for every cache type of llama.cpp, and the parts that it allocates.

    Example: [bold]hbf kv info model.gguf --context 32768 -ctk q8_0 -ctv q8_0[/bold]
    """
    from hbf_fuse.gguf import kv
    from hbf_fuse.models import choice, split
    from hbf_fuse.workload.kv_oracle import Question

    described = split.read_model(choice.file_of(model))
    model = described.path  # llama.cpp wants a split model's first part
    trained = described.field("context_length")
    tokens = context or (trained if isinstance(trained, int) and 0 < trained <= 100_000_000 else None)
    # What no cache type changes is told once, by the usual one.
    kv.bytes_per_token(described)
    question = Question(tokens or 4096, parallel, cache_type_k, cache_type_v, unified, ubatch)
    parts = kv.parts(described, *_arguments(question)) if tokens or ask_llama else ()
    if remark := kv.remark(described):
        tell(remark)
    if without := kv.without(described):
        tell(f"{model} ({described.architecture}) has no KV cache: {without}")
    elif not parts:
        tell(
            f"{model} names no context that a model can have: --context says for how many tokens to tell more"
        )
    rows = _by_type(described, tokens)
    allocated = _asked(model, question) if ask_llama else None
    if as_json:
        print_json(_document(rows, tokens, question, parts, allocated))
    elif not without:
        _print_types(rows, tokens)
        _print_parts(parts, question)
    if allocated is not None:
        if not as_json:
            _print_asked(allocated)
        _check(parts, allocated)


def _arguments(question: "Question") -> tuple[int, int, str, str, bool, int]:
    return (
        question.context,
        question.parallel,
        question.cache_type_k,
        question.cache_type_v,
        question.unified,
        question.ubatch,
    )


def _by_type(described: "GgufFile", context: int | None) -> dict[str, tuple[int, int]]:
    """Of each cache type bytes a token, and of a sequence with the whole context."""
    from hbf_fuse.gguf import GgufError, kv

    rows = {}
    for name in kv.CACHE_TYPES:
        try:
            parts = kv.parts(described, context or 1, 1, name, name)
        except GgufError as error:
            tell(str(error))
            continue
        growing = sum(part.bytes_per_token for part in parts)
        constant = sum(part.nbytes for part in parts if not part.tokens_per_cell)
        rows[name] = growing, growing * (context or 0) + constant
    return rows


def _asked(model: Path, question: "Question") -> "list[Allocated]":
    from hbf_fuse.workload import kv_oracle

    return kv_oracle.ask(kv_oracle.find(), model, question)


def _document(
    rows: dict[str, tuple[int, int]],
    context: int | None,
    question: "Question",
    parts: "tuple[CachePart, ...]",
    allocated: "list[Allocated] | None",
) -> dict[str, Any]:
    document: dict[str, Any] = {
        "bytes_per_token": {name: growing for name, (growing, _) in rows.items()},
        "context": context,
        **{key: value for key, value in asdict(question).items() if key != "context"},
        "parts": [
            {**asdict(part), "bytes": part.nbytes, "bytes_per_token": part.bytes_per_token} for part in parts
        ],
        "bytes": sum(part.nbytes for part in parts),
    }
    if allocated is not None:
        document["llama"] = [asdict(cache) for cache in allocated]
    return document


def _print_types(rows: dict[str, tuple[int, int]], context: int | None) -> None:
    print(f"{'cache type':12}{'bytes/token':>12}{f'at {context} tokens':>20}")
    for name, (growing, whole) in rows.items():
        print(f"{name:12}{growing:12}{format_size(whole) if context else '-':>20}")


def _print_parts(parts: "tuple[CachePart, ...]", question: "Question") -> None:
    if not parts:
        return
    types = f"{question.cache_type_k} and {question.cache_type_v}"
    sequences = f", {question.parallel} sequences" if question.parallel > 1 else ""
    print(f"\nwhat llama.cpp allocates for {question.context} tokens{sequences} in {types}:\n")
    print(f"{'part':12}{'layers':>7}{'cells':>16}{'bytes/token':>13}{'keys':>14}{'values':>14}{'sum':>14}")
    for part in parts:
        cells = f"{part.sequences} x {part.cells}" if part.sequences > 1 else str(part.cells)
        sizes = "".join(
            f"{format_size(size):>14}" for size in (part.key_bytes, part.value_bytes, part.nbytes)
        )
        print(f"{part.kind:12}{part.layers:7}{cells:>16}{part.bytes_per_token:13}{sizes}")
    print(f"{'sum':76}{format_size(sum(part.nbytes for part in parts)):>14}")


def _print_asked(allocated: "list[Allocated]") -> None:
    print("\nwhat llama.cpp says:\n")
    for cache in allocated:
        print(f"{cache.cache:26}{cache.cells:9} cells{cache.mib + ' MiB':>14}")
    if not allocated:
        print("no cache")


def _check(parts: "tuple[CachePart, ...]", allocated: "list[Allocated]") -> None:
    """HbfError where llama.cpp allocates something else than its table here says."""
    from hbf_fuse.workload import kv_oracle

    if not kv_oracle.agree([(part.nbytes, part.cells) for part in parts], allocated):
        raise HbfError(
            f"llama.cpp allocates {sum(float(cache.mib) for cache in allocated):.2f} MiB, and "
            f"hbf_fuse/gguf/architectures.toml has {kv_oracle.mib(sum(part.nbytes for part in parts))}",
            "report it with what `hbf kv info --ask-llama --json` prints",
        )
