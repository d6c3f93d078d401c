"""Hosts of several workers that add up their gradients before one of them pushes the sum: hierarchical aggregation.

Source: Jiang et al., BytePS, OSDI 2020, section 4.2: local workers aggregate first, so that a host sends its gradients
once, and receives parameters once, however many GPUs it has.
"""

from __future__ import annotations

from stanza_sim.schedule.ops import Bundle, Pattern, Phase, Value, ValueKind
from stanza_sim.strategies._shared.builder import Builder


class Hosts:
    """Hosts of `local` workers each, the last perhaps of fewer: the i-th worker is on host i // local.

    For each bundle one worker of every host leads: it adds up what the host's workers have, and passes parameters on to
    them. The workers of a host lead in turn, bundle by bundle, so that each has a share of the local messages. The port
    of a host carries the same whoever leads, since its ranks share it; were one of them to lead always, (local - 1)
    times the model would pass its own local link, each way.
    """

    def __init__(self, b: Builder, workers: str, local: int) -> None:
        self._workers = workers
        ranks = list(b.groups[workers].ranks)
        self._hosts = [ranks[i : i + local] for i in range(0, len(ranks), local)]
        self._even = len({len(host) for host in self._hosts}) == 1
        self._leaders = [[host[j % len(host)] for host in self._hosts] for j in range(len(self._hosts[0]))]
        self._groups = [b.group(f"lead.{j}", leaders) for j, leaders in enumerate(self._leaders)]

    def leaders(self, place: int) -> str:
        """The group of those that lead for the bundle that is the `place`-th to be pushed."""
        return self._groups[place % len(self._groups)]

    def gather(self, b: Builder, bundle: Bundle, place: int, after: list[str], credit: int) -> str:
        """Gather the gradients of `bundle` at its leaders and add them up; returns the op's name."""
        gather = self._move(b, "gather", bundle, place, after, credit)
        # In a lane of its own: neither backward passes nor what a server beside it does must come first.
        lane = f"local.{b.blocks_of(bundle)[0]}" if credit else "local"
        return b.compute(Phase.PARTIAL, bundle.name, self.leaders(place), after=[gather], lane=lane)

    def spread(self, b: Builder, bundle: Bundle, place: int, pull: str, credit: int) -> str:
        """Pass the parameters of `bundle`, pulled in `pull`, on to the workers of each host; returns the op's name."""
        return self._move(b, "spread", bundle, place, [pull], credit)

    def _move(self, b: Builder, what: str, bundle: Bundle, place: int, after: list[str], credit: int) -> str:
        j = place % len(self._groups)
        inward = what == "gather"
        src, dst = (self._workers, self._groups[j]) if inward else (self._groups[j], self._workers)
        pairs: tuple[tuple[int, int], ...] = ()
        if not self._even:
            both = [(r, lead) for host, lead in zip(self._hosts, self._leaders[j], strict=True) for r in host]
            pairs = tuple(sorted(both if inward else [(lead, r) for r, lead in both]))
        return b.transfer(
            f"{what}.{bundle.name}",
            src,
            dst,
            Pattern.BLOCKED if self._even else Pattern.EXPLICIT,
            [Value(ValueKind.PART if inward else ValueKind.COPY, bundle.name)],
            # Each channel has one pattern, so that hosts that are alike are simulated once.
            channel=f"{what}.{j}",
            priority=b.priority(bundle),
            credit=credit,
            pairs=pairs,
            after=after,
        )
