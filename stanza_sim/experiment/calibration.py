"""Calibrating a cluster: its ranks are started, and single messages between them are measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

from stanza_sim.cluster import Cluster
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.network import NetworkProfile, mismatches


def calibrate_cluster(
    cluster: Cluster,
    models: Sequence[tuple[ModelProfile, int]] = (),
    *,
    testbed: bool = False,
    realtime: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> tuple[NetworkProfile, bool]:
    """Measure on the ranks of `cluster`, in an emulated network if `testbed`; also time the blocks of `models`.

    Each of `models` comes with a number of samples. The second value is False in a process that a launcher made a rank
    other than the first. Raises `InputError` and `RunError`.
    """
    from stanza_sim.execute import ComputeMode, open_workers, require_torch
    from stanza_sim.execute.calibrate.network import calibrate_network
    from stanza_sim.experiment.network_cache import warn

    require_torch()
    bed, places = None, None
    if testbed:
        from stanza_sim.testbed import Testbed

        bed = Testbed(cluster)
        for note in bed.notes:
            say(f"note: {note}")
    with bed or nullcontext():
        if bed is not None:
            from stanza_sim.experiment.emulation import places_in

            places = places_in(bed, cluster)
        # In a testbed the devices that a topology names are not there.
        compute = ComputeMode.EMULATED if testbed else ComputeMode.REAL
        with open_workers(cluster, compute=compute, places=places, say=say) as workers:
            found = calibrate_network(workers, cluster, testbed=testbed, realtime=realtime, models=models, say=say)
            is_main = workers.is_main
    if realtime and not found.realtime:
        say("warning: real-time scheduling is not permitted here")
    warn(mismatches(found, cluster), say)
    return found, is_main
