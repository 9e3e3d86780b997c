"""The files that are served, which tier each byte of them is in, and the books on their reads."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

from hbf_fuse.fs.node import Node
from hbf_fuse.fs.placement import DRAM, Layout, Placement, placements_of
from hbf_fuse.fs.tree import Tree
from hbf_fuse.observe.ring import Ring
from hbf_fuse.observe.status import MappedStatus, ResidentStatus
from hbf_fuse.pacing.pacer import Pacer
from hbf_fuse.pacing.resident import Resident
from hbf_fuse.tier import TierSpec
from hbf_fuse.verdict import Evidence, Verdict, judge


class Mappings(Protocol):
    """Reads of mappings that do not pass this filesystem; see engine/memory/.

    pacer: has the books of these reads.
    """

    pacer: Pacer

    def look(self) -> None:
        """Bring the books up to date."""

    def exchange(self, spec: TierSpec) -> None:
        """As Pacer.exchange."""

    def proven(self, evidence: Evidence) -> Evidence:
        """With what is known of whether the readers' own words are true."""

    def status(self) -> MappedStatus:
        """As stats.json holds it."""

    def resident_status(self) -> ResidentStatus | None:
        """The budget of the mappings."""


class Served:
    """Files of a tree behind one tier, or several.

    files: every served file, by its place. regions: by the place of a file, what Pacer calls placed. mapped:
    set by the memory engine. replies_seen: whether the engine knows when replies are sent, see
    verdict/evidence.py. written_bytes: size of kv/, 0 for none. unplaced: files without tensors, which the
    placement rules cannot apply to. Raises HbfError; see Resident and Placement.
    """

    def __init__(self, tree: Tree, spec: TierSpec, layout: Layout, written_bytes: int = 0) -> None:
        self.tree = tree
        self.spec = spec
        self.layout = layout
        self.replies_seen = True
        self.mapped: Mappings | None = None
        self.unplaced: list[str] = []
        self.files: Sequence[Node] = list(tree.files())
        self._places = {node.ino: place for place, node in enumerate(self.files)}
        self._sets = tree.sets(self.files)
        placements = dict(self._placed())
        self._is_placed = bool(placements)
        self.resident = self._budget(placements) if layout.resident_bytes is not None else None
        names = {name: place for place, name in enumerate(layout.specs(spec))}
        self.regions = {
            place: [(start, names[tier]) for start, tier in placement.regions]
            for place, placement in placements.items()
        }
        self.pacer = self.new_pacer(self.resident, written_bytes)

    @property
    def ring(self) -> Ring:
        """The newest reads: of mappings, where these do not pass this filesystem."""
        return self.mapped.pacer.ring if self.mapped else self.pacer.ring

    @property
    def books(self) -> Pacer:
        """Whose counters are told. Reads of the mount itself count apart from those of mappings: they are no
        part of what came through these.
        """
        return self.mapped.pacer if self.mapped and self.mapped.pacer.counters.reads else self.pacer

    @property
    def tiers(self) -> dict[str, TierSpec]:
        """By name."""
        return self.layout.specs(self.spec)

    def place(self, node: Node) -> int:
        """A file's place in the list of files; for one in kv/, minus its inode."""
        return self._places.get(node.ino, -node.ino)

    def new_pacer(self, resident: Resident | None = None, written_bytes: int = 0) -> Pacer:
        """A pacer for these files and tiers, with schedules of its own."""
        files = [(node.ino, node.size) for node in self.files]
        return Pacer(self.tiers, files, self.regions, resident, self._sets, written_bytes)

    def exchange(self, spec: TierSpec) -> None:
        """Serve reads that come from now on with another tier."""
        self.spec = spec
        self.pacer.exchange(spec)
        if self.mapped:
            self.mapped.exchange(spec)

    def judged(self, pacer: Pacer, model: int) -> Verdict:
        """The verdict on a model's first pass; see verdict/rules.py."""
        evidence = dataclasses.replace(
            pacer.first_pass(model),
            floor_known=pacer.floor.known and (model != pacer.kv_model or pacer.writing.known),
            replies_seen=self.replies_seen,
        )
        if self.mapped and pacer is self.mapped.pacer:
            evidence = self.mapped.proven(evidence)
        return judge(list(self.tiers.values()) if self._is_placed else [self.spec], evidence)

    def _placed(self) -> Iterator[tuple[int, Placement]]:
        """A placement for every GGUF, by the file's place. Nothing without rules."""
        rules = self.layout.rules()
        if not rules:
            return
        # Imported only when needed: it imports numpy, which takes a tenth of a second.
        from hbf_fuse import gguf

        models = {}
        for place, node in enumerate(self.files):
            try:
                models[place] = gguf.read(node.source or self.tree.source, self.tree.open(node))
            except gguf.GgufError:
                self.unplaced.append(self.tree.path_of(node))
        yield from zip(models, placements_of(list(models.values()), rules), strict=True)

    def _budget(self, placements: dict[int, Placement]) -> Resident:
        return Resident(
            self.layout.resident_bytes or 0,
            self.layout.policy,
            [node.size for node in self.files],
            {place: placement.spans(DRAM) for place, placement in placements.items()},
        )
