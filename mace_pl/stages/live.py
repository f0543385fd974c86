"""Stages 1 and 3 for one set of strengths after another: what these do not change is solved once per set of targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from mace_pl.methods.base import ClosedForm
from mace_pl.methods.edit import ConceptSums, Edit, Factors, SumsOnDisk
from mace_pl.methods.fusion import FusedLoras, added
from mace_pl.models.backbone import backbone_of
from mace_pl.models.protocols import Pipeline
from mace_pl.run import Run
from mace_pl.stages.again import wanted_of
from mace_pl.stages.beside import with_beside
from mace_pl.stages.preserve import Preserved, preserve
from mace_pl.stages.refine import solve_total
from mace_pl.stages.strengths import Changes

SETS = 8  # sets of targets that are remembered; each holds some matrices [D, D]


@dataclass(frozen=True)
class Together:
    """A set of targets, whatever their strengths.

    Attributes:
        sums: by target, with those of concepts beside them.
        total: the sums over all, each target at full strength.
        preserved: what is preserved; None where that depends on strengths.
        fused: their LoRAs; None where it depends on strengths, or where none are fused.
    """

    sums: SumsOnDisk
    total: ConceptSums
    preserved: Preserved | None
    fused: FusedLoras | None


class LiveEdit:
    """The edit of a run for any strengths of any of its targets.

    The same edit as that of :func:`mace_pl.stages.again.solve_again`, but for rounding. G is linear in the strengths,
    and neither F and M nor A*_i depend on them. With ``model.domain_vocabulary`` what is preserved depends on them, and
    all is solved each time.

    Args:
        run: a run with its sums and LoRAs, whose configuration names where its files are now.
        pipeline: the original model; its weights must be the original ones whenever an edit is asked for.
        method: the closed form.
        way: ``fused``, ``added`` or ``refined``.

    Raises:
        UserError: a file that is not there or does not fit.
    """

    def __init__(self, run: Run, pipeline: Pipeline, method: ClosedForm, way: str) -> None:
        self.pipeline, self.method, self.way = pipeline, method, way
        self.layers = backbone_of(pipeline).key_values()
        self.original = backbone_of(pipeline).text_layers()
        self.wanted = wanted_of(pipeline, run.config["model"], method)
        self.targets = list(run.targets)
        self.sums, self.changes = SumsOnDisk(), Changes()
        self.loras: dict[str, Factors] = {}
        for target in self.targets:
            sums, factors = run.concept(target, self.layers, method.trains and way != "refined")
            self.sums.add(target, sums)
            self.changes.add(target, sums)
            self.loras[target] = factors
        self.known: dict[tuple[str, ...], Together] = {}

    def edit(self, strengths: Mapping[str, float]) -> Edit | None:
        """The edit of some targets; None where there are none.

        Args:
            strengths: in [0, 1] by target; a target that is not named is left out, as if it had not been asked for.

        Raises:
            UserError: the system is singular, or the edit is not finite.
        """
        chosen = tuple(target for target in self.targets if target in strengths)
        if not chosen:
            return None
        together = self._together(chosen)
        total = self.changes.weighted(together.total, strengths)
        preserved = together.preserved or self._preserved(together, total)
        refined = solve_total(self.pipeline, self.method, total, self.wanted, preserved, self.layers)
        if self.way == "fused":
            fused = together.fused or FusedLoras.of(self._own(chosen), self._loras(chosen), preserved.fuse)
            return fused.edit(refined, strengths)
        if self.way == "added":
            return added(refined, [{n: (A, strengths[t] * B) for n, (A, B) in self.loras[t].items()} for t in chosen])
        return refined

    def _together(self, chosen: tuple[str, ...]) -> Together:
        if chosen not in self.known:
            own = self._own(chosen)
            sums = with_beside(own, self.wanted.beside)
            found = Together(sums, sums.total, None, None)
            if not self.wanted.vocabulary:
                preserved = self._preserved(found, found.total)
                fuse = self.way == "fused"
                fused = FusedLoras.of(own, self._loras(chosen), preserved.fuse) if fuse else None
                found = replace(found, preserved=preserved, fused=fused)
            while len(self.known) >= SETS:
                del self.known[next(iter(self.known))]
            self.known[chosen] = found
        return self.known[chosen]

    def _preserved(self, together: Together, total: ConceptSums) -> Preserved:
        parts = self.pipeline, self.wanted, self.method, total, list(together.sums), self.layers
        return preserve(*parts, full=together.total)

    def _own(self, chosen: tuple[str, ...]) -> SumsOnDisk:
        return self.sums.only(chosen)

    def _loras(self, chosen: tuple[str, ...]) -> dict[str, Factors]:
        return {target: self.loras[target] for target in chosen}
