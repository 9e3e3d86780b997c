"""Which of a model's tensors are in which tier, by name."""

import difflib
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
MAX_EXAMPLES = 12
MAX_RULE = 1000
MAX_SECONDS = 2.0
"""Limit for matching all names of all files: some expressions would take years."""

MAIN = "hbf"
"""The mount's own tier. It holds everything that no rule names."""

POLICIES = ("fifo", "pin")
"""Which pages stay in the emulated DRAM; see resident.Resident."""

DEFAULT_POLICY = "pin"
"""Decode reads the weights in a cycle. Only this policy keeps pages that are read again."""

DRAM = "dram"
"""Unthrottled, and never dropped from the page cache."""


@dataclass(frozen=True)
class Rule:
    """Tensors are in `tier` if the pattern is found in their names."""

    pattern: "regex.Pattern[str]"
    tier: str

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """From "REGEX=TIER". HbfError for anything else."""
        pattern, equals, tier = text.rpartition("=")
        if not equals or not pattern or not tier:
            raise HbfError(f"cannot read --place {text!r}", "write it like 'ffn_.*_exps=hbf'")
        if len(text) > MAX_RULE:
            raise HbfError(f"--place of {len(text)} characters", f"at most {MAX_RULE} make sense")
        try:
            return cls(regex.compile(pattern), tier)
        except (regex.error, RecursionError, OverflowError, KeyError, ValueError) as error:
            raise HbfError(f"--place {text!r}: {pattern!r} is not a regular expression: {error}") from error


@dataclass(frozen=True)
class Layout:
    """Where a model's bytes are: what the emulated DRAM holds, and which tensors are in which tier.

    resident_bytes: size of the emulated DRAM in front of the tier, None for no limit. policy: what stays in
    it, see Resident. place: rules "REGEX=TIER"; the first that matches counts. tiers: the tiers that rules
    name, besides MAIN and DRAM.

    Raises HbfError for a rule that cannot be read, an unknown policy, and a tier that is named but not
    defined.
    """

    resident_bytes: int | None = None
    policy: str = DEFAULT_POLICY
    place: tuple[str, ...] = ()
    tiers: Mapping[str, TierSpec] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise HbfError(f"unknown policy {self.policy!r} (--policy)", f"there are: {', '.join(POLICIES)}")
        known = {MAIN, DRAM, *self.tiers}
        for rule in self.rules():
            if rule.tier not in known:
                raise HbfError(
                    f"--place names the tier {rule.tier!r}, which is not defined",
                    f"there are {', '.join(sorted(known))}, and what a file (--tiers) defines",
                )

    def rules(self) -> list[Rule]:
        """The rules in `place`, parsed."""
        return [Rule.parse(text) for text in self.place]

    def specs(self, main: TierSpec) -> dict[str, TierSpec]:
        """All tiers by name; the mount's own is first."""
        return {MAIN: main, **({DRAM: TierSpec()} if self.place else {}), **self.tiers}


class Placement:
    """A file's bytes by tier, in whole pages. A page with any byte placed in DRAM is in DRAM.

    regions: (first byte, tier), ordered; each reaches to the next one or to the end of the file. The first
    rule that matches a tensor counts. Bytes outside of all tensors are in DRAM: the loader reads the header
    only once. give_up: until when to match, by time.monotonic.
    """

    def __init__(self, model: "GgufFile", rules: Sequence[Rule], give_up: float) -> None:
        found = _found(model, rules, give_up)
        self.unmatched = {rule for rule, names in zip(rules, found, strict=True) if not names}
        """Rules that match no tensor of this file."""
        self.size = model.size
        self.regions = list(_by_page(model, rules, found))
        self._starts = [start for start, _ in self.regions]

    def pieces(self, offset: int, nbytes: int) -> Iterator[tuple[str, int, int]]:
        """The read split into (tier, offset, bytes), in order."""
        end = offset + nbytes
        place = bisect_right(self._starts, offset) - 1
        while offset < end:
            until = self._starts[place + 1] if place + 1 < len(self._starts) else end
            piece_end = min(end, until)
            yield self.regions[place][1], offset, piece_end - offset
            offset, place = piece_end, place + 1

    def bytes_of(self, tier: str) -> int:
        """How many bytes of the file are in a tier."""
        return sum(end - start for start, end in self.spans(tier))

    def spans(self, tier: str) -> list[tuple[int, int]]:
        """The ranges of a tier, as (first, end)."""
        ends = [*self._starts[1:], self.size]
        return [(start, end) for (start, name), end in zip(self.regions, ends, strict=True) if name == tier]


def placements_of(models: Sequence["GgufFile"], rules: Sequence[Rule]) -> list[Placement]:
    """A placement for each file. HbfError if a rule matches in none of them, or matching takes too long."""
    give_up = time.monotonic() + MAX_SECONDS
    placements = [Placement(model, rules, give_up) for model in models]
    for rule in rules:
        if placements and all(rule in placement.unmatched for placement in placements):
            pattern = rule.pattern.pattern
            raise HbfError(
                f"--place: no tensor matches {pattern!r}", f"the nearest are {_nearest(models, pattern)}"
            )
    return placements


def _nearest(models: Sequence["GgufFile"], pattern: str) -> str:
    """The kinds of tensor names that a pattern is most like, with N for the layer's number."""
    names = (tensor.name for model in models for tensor in model.tensors)
    kinds = dict.fromkeys(re.sub(r"\.\d+\.", ".N.", name) for name in names)
    like = difflib.SequenceMatcher(b=pattern)

    def likeness(kind: str) -> float:
        like.set_seq1(kind)
        return like.ratio()

    return ", ".join(sorted(kinds, key=likeness, reverse=True)[:MAX_EXAMPLES])


def _found(model: "GgufFile", rules: Sequence[Rule], give_up: float) -> list[set[str]]:
    """For each rule, the names of the tensors that it matches. HbfError if matching takes too long."""
    names = [tensor.name for tensor in model.tensors]
    found = []
    for rule in rules:
        try:
            found.append({name for name in names if _fits(rule.pattern, name, give_up)})
        except TimeoutError as error:
            raise HbfError(
                f"--place: {rule.pattern.pattern!r} takes too long to match", "nest no repeats in it"
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
    """Where regions begin, in whole pages. found: the names that each rule matches."""
    names = [DRAM, *dict.fromkeys(tier for rule in rules if (tier := rule.tier) != DRAM)]
    names += [MAIN] if MAIN not in names else []
    tiers = {
        name: rule.tier for rule, fitted in reversed([*zip(rules, found, strict=True)]) for name in fitted
    }
    placed = [(tensor, names.index(tiers.get(tensor.name, MAIN))) for tensor in model.tensors]
    ranges = [
        (number, tensor.offset // PAGE, -(-(tensor.offset + tensor.nbytes) // PAGE))
        for tensor, number in placed
    ]
    # Between two neighbouring ends of tensors all pages are in one tier.
    edges = sorted({0, -(-model.size // PAGE), *(edge for _, *both in ranges for edge in both)})
    place_of = {edge: place for place, edge in enumerate(edges)}
    runs = [names.index(DRAM)] * (len(edges) - 1)
    # DRAM last: a page that it shares with another tier becomes DRAM's.
    for number, first, end in sorted(ranges, key=lambda each: -each[0]):
        for place in range(place_of[first], place_of[end]):
            runs[place] = number
    for number, places in itertools.groupby(range(len(runs)), key=lambda place: runs[place]):
        yield edges[next(places)] * PAGE, names[number]
