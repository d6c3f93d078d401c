"""Memory per device: by hand on small schedules, and what does not fit."""

import pytest

from stanza_sim import strategies
from stanza_sim.base.op_kinds import OpKind
from stanza_sim.cluster import load_cluster
from stanza_sim.experiment.file import load_experiment
from stanza_sim.model import zoo
from stanza_sim.schedule import Transfer
from stanza_sim.studies.plan.assess import weigh
from stanza_sim.studies.plan.choices import Choice
from stanza_sim.studies.plan.memory import capacity, memory_of, not_judged, too_much
from stanza_sim.studies.plan.session import problems_of

MODEL = zoo.get("alexnet")


def schedule_of(name, world, **settings):
    found = strategies.get(name)
    return found.build(MODEL, world_size=world, batch_per_worker=8, settings=found.Settings.model_validate(settings))


def kept(blocks):
    """Bytes of a sample: what is put out, less a third of what elementwise operations touch."""
    touched = sum(w.forward.sample_nbytes for b in blocks for w in b.work if w.kind is OpKind.ELEMENTWISE)
    return sum(b.bytes_touched for b in blocks) - touched / 3


def received(schedule, rank):
    return {
        op.name: sum(schedule.message_bytes(op, src, rank) for src in schedule.sources(op, rank) if src != rank)
        for op in schedule.ops
        if isinstance(op, Transfer)
    }


def test_ranks_that_share_a_device_share_its_memory():
    shared, apart = load_cluster("one-gpu-shared", nodes=4), load_cluster("hgx-h100-8", nodes=4)
    assert capacity(shared, 1) == capacity(apart, 1) // 4
    need = memory_of(schedule_of("all_reduce", 4), MODEL, {1: {}}, activation_scale=1000)[1]
    assert capacity(apart, 1) > capacity(shared, 1)
    assert "H100 has 20 GB for each of 4 ranks" in (too_much(shared, {1: need}) or "")


def test_a_rank_of_an_all_reduce_holds_the_model_its_gradients_and_its_batch():
    schedule = schedule_of("all_reduce", 4)
    need = memory_of(schedule, MODEL, {1: {}})[1]
    assert need.weights_nbytes == need.optimiser_nbytes == MODEL.nbytes
    assert need.gradients_nbytes == 2 * MODEL.nbytes
    largest = MODEL.block("classifier.1")  # when it goes backward, those behind it are done
    there = MODEL.blocks[: MODEL.place(largest.name) + 1]
    assert need.activations_nbytes == pytest.approx(8 * kept(there), abs=len(there))
    ends = largest.output_numel + 9216
    assert need.backward_nbytes == largest.numel * 4 + 8 * ends * 4
    assert need.received_nbytes == need.sums_nbytes == 0
    assert need.input_nbytes == 2 * 8 * 3 * 224 * 224 * 4


def test_a_dedicated_server_holds_every_worker_s_gradients_twice():
    schedule = schedule_of("parameter_server", 4)
    needs = memory_of(schedule, MODEL, {r: received(schedule, r) for r in (0, 3)})
    server = needs[3]
    assert server.weights_nbytes == server.optimiser_nbytes == MODEL.nbytes
    assert server.received_nbytes == 2 * 3 * MODEL.nbytes
    assert server.sums_nbytes == 2 * MODEL.nbytes
    assert server.activations_nbytes == server.gradients_nbytes == server.input_nbytes == 0
    worker = needs[0]  # parameters that it pulls land in place
    assert (worker.received_nbytes, worker.optimiser_nbytes) == (0, 0)


def test_nccl_takes_memory_for_each_rank_that_one_talks_to_and_gloo_that_of_the_host():
    schedule = schedule_of("parameter_server", 4)
    by_op = {r: received(schedule, r) for r in (0, 3)}
    plain = memory_of(schedule, MODEL, by_op)
    nccl = memory_of(schedule, MODEL, by_op, nccl=[0, 3])
    MiB = 1024 * 1024
    assert [nccl[r].communicators_nbytes for r in (0, 3)] == [2 * 32 * 4 * MiB, 6 * 22 * 4 * MiB]
    assert nccl[3].nbytes == plain[3].nbytes + nccl[3].communicators_nbytes
    staged = memory_of(schedule, MODEL, by_op, staged=[3])
    assert staged[3].page_locked_nbytes == 4 * 3 * MODEL.nbytes
    assert staged[3].nbytes == plain[3].nbytes
    alone = memory_of(schedule_of("local", 1), MODEL, {0: {}}, nccl=[0])[0]
    assert alone.communicators_nbytes == 0


def test_shards_own_their_slices():
    schedule = schedule_of("parameter_server", 4, placement="colocated", assignment="cut")
    need = memory_of(schedule, MODEL, {0: received(schedule, 0)})[0]
    assert need.weights_nbytes == MODEL.nbytes
    assert need.optimiser_nbytes == pytest.approx(MODEL.nbytes / 4, rel=0.01)
    assert need.received_nbytes == pytest.approx(2 * 3 * MODEL.nbytes / 4, rel=0.01)


def test_an_fc_worker_holds_its_part_for_all_its_conv_workers():
    schedule = schedule_of("stanza", 4)
    needs = memory_of(schedule, MODEL, {r: received(schedule, r) for r in (0, 3)})
    conv, fc = needs[0], needs[3]
    assert fc.weights_nbytes == sum(b.numel for b in MODEL.fc_blocks) * 4
    boundary = MODEL.conv_blocks[-1].output_numel
    joined = 4 * boundary  # what came from three
    assert fc.activations_nbytes == pytest.approx(3 * 8 * (kept(MODEL.fc_blocks) + joined), abs=3)
    assert fc.sent_nbytes == 2 * 3 * 8 * 4 * boundary
    assert fc.received_nbytes == 2 * 3 * 8 * (4 * boundary + 8)
    assert conv.received_nbytes == 2 * 8 * 4 * boundary
    assert conv.weights_nbytes == sum(b.numel for b in MODEL.conv_blocks) * 4


def test_what_does_not_fit_is_out_and_says_why(small):
    problem = problems_of(load_experiment(str(small), ["batch_per_worker=8000"]), [])[0]
    known = weigh(problem, Choice(entry=problem.loaded.value.strategies[0]))
    assert (known.out, known.kind) == (True, "memory")
    assert "most of it for activations, V100 has 16 GB" in known.reason


def test_hosts_without_a_device_are_not_judged():
    problem = problems_of(load_experiment("laptop", []), [])[0]
    assert list(not_judged(problem.cluster)) == [0, 1, 2, 3]


def test_a_slice_of_the_fc_part_needs_its_share():
    whole = memory_of(schedule_of("stanza", 4, fc_workers=2), MODEL, {2: {}})[2]
    part = memory_of(schedule_of("stanza", 4, fc_workers=2, fc_parallel="model"), MODEL, {2: {}})[2]
    assert part.weights_nbytes == pytest.approx(whole.weights_nbytes / 2, rel=0.01)
    assert part.optimiser_nbytes == pytest.approx(whole.optimiser_nbytes / 2, rel=0.01)
