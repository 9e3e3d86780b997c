"""Which tensors of a model come from which tier, by name."""

import itertools
import re
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import regex

from hbf_fuse.errors import HbfError
from hbf_fuse.tier import TierSpec

if TYPE_CHECKING:
    from hbf_fuse.gguf.reader import GgufFile

PAGE = 4096
MAX_EXAMPLES = 30
MAX_RULE = 1000
MAX_SECONDS = 2.0
"""For all names of a model together: there are expressions that take years."""

MAIN = "hbf"
"""The mount's own tier: where everything is that no rule names."""

POLICIES = ("fifo", "pin")
"""What stays in the emulated DRAM; see resident.Resident."""

DEFAULT_POLICY = "pin"
"""Decode reads the weights in a cycle: of the two, only this keeps anything that is read again."""

DRAM = "dram"
"""Unthrottled, and never dropped from the page cache."""


@dataclass(frozen=True)
class Rule:
    """Tensors whose names the pattern is found in come from `tier`."""

    pattern: "regex.Pattern[str]"
    tier: str

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """From "REGEX=TIER". HbfError for anything else."""
        pattern, equals, tier = text.rpartition("=")
        if not equals or not pattern or not tier:
            raise HbfError(f"cannot read --place {text!r}; write it like 'ffn_.*_exps=hbf'")
        if len(text) > MAX_RULE:
            raise HbfError(f"--place of {len(text)} characters; at most {MAX_RULE} make sense")
        try:
            return cls(regex.compile(pattern), tier)
        except (regex.error, RecursionError, OverflowError, KeyError, ValueError) as error:
            raise HbfError(f"--place {text!r}: {pattern!r} is no regular expression: {error}") from error


@dataclass(frozen=True)
class Layout:
    """Where a model lies: what the emulated DRAM holds, and which tensors come from where.

    resident_bytes: the emulated DRAM in front of the tier, None for as much as there is; policy: what stays
    in it, see Resident. place: "REGEX=TIER" each, the first that fits counts. tiers: those that are named
    there, beside MAIN and DRAM.

    Raises HbfError for what cannot be read, an unknown policy, and tiers that are named and not defined.
    """

    resident_bytes: int | None = None
    policy: str = DEFAULT_POLICY
    place: tuple[str, ...] = ()
    tiers: Mapping[str, TierSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise HbfError(f"unknown policy {self.policy!r} (--policy); there are: {', '.join(POLICIES)}")
        known = {MAIN, DRAM, *self.tiers}
        for rule in self.rules():
            if rule.tier not in known:
                raise HbfError(
                    f"--place names the tier {rule.tier!r}, which is not defined; there are "
                    f"{', '.join(sorted(known))}, and what a file (--tiers) defines"
                )

    def rules(self) -> list[Rule]:
        """place, parsed."""
        return [Rule.parse(text) for text in self.place]

    def specs(self, main: TierSpec) -> dict[str, TierSpec]:
        """All tiers by name, the mount's own first."""
        return {MAIN: main, **({DRAM: TierSpec()} if self.place else {}), **self.tiers}


class Placement:
    """A file's bytes by tier, in whole pages: a page that holds any byte placed in DRAM is DRAM's.

    regions: (first byte, tier), ordered; each reaches to the next one or to the end of the file. The first
    rule that fits a tensor counts. What is no tensor is in DRAM if there are rules at all: the header is
    read once, by the loader.
    """

    def __init__(self, model: "GgufFile", rules: Sequence[Rule]) -> None:
        found = _found(model, rules)
        for rule, names in zip(rules, found, strict=True):
            if not names:
                raise HbfError(
                    f"--place: no tensor of {model.path.name} matches {rule.pattern.pattern!r}; there are "
                    f"{_examples(model)}"
                )
        self.size = model.size
        self.regions = list(_by_page(model, rules, found))
        self._starts = [start for start, _ in self.regions]

    def pieces(self, offset: int, nbytes: int) -> Iterator[tuple[str, int, int]]:
        """The read in (tier, offset, bytes), in order."""
        end = offset + nbytes
        place = bisect_right(self._starts, offset) - 1
        while offset < end:
            until = self._starts[place + 1] if place + 1 < len(self._starts) else end
            piece_end = min(end, until)
            yield self.regions[place][1], offset, piece_end - offset
            offset, place = piece_end, place + 1

    def bytes_of(self, tier: str) -> int:
        """How much of the file is in a tier."""
        return sum(end - start for start, end in self.spans(tier))

    def spans(self, tier: str) -> list[tuple[int, int]]:
        """Where a tier's bytes are, as (first, end)."""
        ends = [*self._starts[1:], self.size]
        return [(start, end) for (start, name), end in zip(self.regions, ends, strict=True) if name == tier]


def _examples(model: "GgufFile") -> str:
    """The kinds of tensors, with the number of a layer left open."""
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", tensor.name) for tensor in model.tensors)
    return ", ".join(itertools.islice(kinds, MAX_EXAMPLES))


def _found(model: "GgufFile", rules: Sequence[Rule]) -> list[set[str]]:
    """For each rule, the names of the tensors that it fits. HbfError if that takes too long."""
    give_up, names = time.monotonic() + MAX_SECONDS, [tensor.name for tensor in model.tensors]
    found = []
    for rule in rules:
        try:
            found.append({name for name in names if _fits(rule.pattern, name, give_up)})
        except TimeoutError as error:
            raise HbfError(
                f"--place: {rule.pattern.pattern!r} takes too long to look for; nest no repeats in it"
            ) from error
    return found


def _fits(pattern: "regex.Pattern[str]", name: str, give_up: float) -> bool:
    left = give_up - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return pattern.search(name, timeout=left) is not None


def _by_page(
    model: "GgufFile", rules: Sequence[Rule], found: Sequence[set[str]]
) -> Iterator[tuple[int, str]]:
    """Where regions begin, at pages. found: the names that each rule fits."""
    names = [DRAM, *dict.fromkeys(tier for rule in rules if (tier := rule.tier) != DRAM)]
    names += [MAIN] if MAIN not in names else []
    pages = bytearray(-(-model.size // PAGE))
    tiers = {
        name: rule.tier for rule, fitted in reversed([*zip(rules, found, strict=True)]) for name in fitted
    }
    placed = [(tensor, names.index(tiers.get(tensor.name, MAIN))) for tensor in model.tensors]
    # DRAM last: it takes the pages that it shares.
    for tensor, number in sorted(placed, key=lambda each: -each[1]):
        first, end = tensor.offset // PAGE, -(-(tensor.offset + tensor.nbytes) // PAGE)
        pages[first:end] = bytes([number]) * (end - first)
    at = 0
    for number, run in itertools.groupby(pages):
        yield at * PAGE, names[number]
        at += sum(1 for _ in run)
