"""Options of the workload serve."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hbf_fuse.workload.serve import ServeOptions

_PANEL = "Workload serve"


def _option(*names: str, about: str, **more: Any) -> Any:
    return typer.Option(*names, help=about, rich_help_panel=_PANEL, show_default=False, **more)


@dataclass(frozen=True)
class ServeLoad:
    """How a llama-server is loaded."""

    concurrency: Annotated[
        str | None,
        _option("--concurrency", about="Users at once, one level after the other. \\[default: 1,4,8]"),
    ] = None
    requests: Annotated[
        int | None,
        _option("--requests", about="Of a level; rounded up to whole rounds. \\[default: 8]", min=1),
    ] = None
    input_tokens: Annotated[
        int | None, _option("--input-tokens", about="Of a prompt. \\[default: 128]", min=1)
    ] = None
    output_tokens: Annotated[
        int | None, _option("--output-tokens", about="Of an answer. \\[default: 32]", min=2)
    ] = None
    ctx_size: Annotated[
        int | None,
        _option("--ctx-size", about="llama-server's. \\[default: what the requests need]", min=0),
    ] = None
    parallel: Annotated[
        int | None,
        _option("--parallel", about="llama-server's slots. \\[default: the most users]", min=0),
    ] = None
    request_timeout: Annotated[
        float | None,
        _option(
            "--request-timeout", about="Seconds until a request counts as failed. \\[default: 600]", min=0.1
        ),
    ] = None

    def given(self) -> dict[str, Any]:
        """What the command line says, under the names of a grid."""
        fields = {name: value for name, value in vars(self).items() if value is not None}
        if self.concurrency is not None:
            fields["concurrency"] = users(self.concurrency)
        return fields

    def tokens(self) -> tuple[int, int]:
        """Of a prompt, and of an answer."""
        from hbf_fuse.workload.serve import INPUT_TOKENS, OUTPUT_TOKENS

        return self.input_tokens or INPUT_TOKENS, self.output_tokens or OUTPUT_TOKENS

    def options(self) -> "ServeOptions":
        """HbfError if the requests do not fit into the context."""
        from hbf_fuse.workload.serve import ServeOptions

        fields = self.given()
        for name in ("input_tokens", "output_tokens"):
            fields.pop(name, None)
        options = ServeOptions(**fields)
        options.context(sum(self.tokens()))
        return options


def users(text: str) -> tuple[int, ...]:
    """A list such as 1,4,8. Wrong usage for anything else."""
    try:
        found = tuple(dict.fromkeys(int(part) for part in text.split(",")))
    except ValueError:
        found = ()
    if not found or min(found) < 1 or max(found) > 1024:
        raise typer.BadParameter(
            f"{text!r} is no list of numbers from 1 to 1024, such as 1,4,8 (--concurrency)"
        )
    return found
