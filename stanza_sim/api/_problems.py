"""What `plan` compares plans on: a model and a cluster that are objects, or those of an experiment."""

from __future__ import annotations

from dataclasses import dataclass, replace

from stanza_sim.api import _what_if
from stanza_sim.base.errors import InputError
from stanza_sim.studies.plan.assess import Problem, Variant


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectProblem(Problem):
    """A problem whose cluster is no file that could be loaded at another rate."""

    def varied(self, variant: Variant) -> Problem:
        """See `Problem.varied`."""
        changed: Problem = self
        if variant.rate_Bps is not None:
            if self.cluster.fabric.forwarding:
                raise InputError("cables between hosts that forward have rates of their own")
            changed = replace(changed, cluster=_what_if.with_rate(self.cluster, variant.rate_Bps))
        if variant.batch is not None:
            changed = replace(changed, entry=self.entry.with_batch(variant.batch))
        return changed
