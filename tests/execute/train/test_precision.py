"""Training in each precision equals single-process training in it, and fp32 within what its rounding makes.

The network has no ReLU, no pooling and no normalisation of few samples: where rounding may change which unit is on,
two ways to round that are as good as each other lead far apart. A tolerance is of the change of each tensor in 5
steps: about 2^-8 for bfloat16 and 2^-11 for float16 (their relative error is half of that), times a few roundings.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.base.precision import Precision
from stanza_sim.execute.calibrate.calibration import calibrate
from stanza_sim.execute.calibrate.sections import _filled, alone
from stanza_sim.execute.rank.accelerator import Cpu
from stanza_sim.execute.rank.context import Context
from stanza_sim.execute.rank.job import RunJob
from stanza_sim.execute.rank.supported import supported, unsupported
from stanza_sim.execute.start.launch import Pool
from stanza_sim.execute.start.start import execute
from stanza_sim.execute.train.arithmetic import Arithmetic, switched
from stanza_sim.execute.train.build import build
from stanza_sim.execute.train.flat import add_in_order
from stanza_sim.execute.train.reference import Trained, largest_deviation, train
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile
from stanza_sim.profiles.blocks import differences
from stanza_sim.schedule import Collective, Transfer, Wire
from stanza_sim.schedule.collectives import collective_bytes
from tests.execute.execute_variants import VARIANTS, job_of, run, schedule_of
from tests.schedule.toys import cluster, predict

SAME_ROUNDING = 1e-4
"""Where every product is that of the single process, on the same samples, only orders of sums in fp32 differ."""
OTHER_ROUNDING = {Precision.BF16: 2e-2, Precision.FP16: 3e-3}
"""Where products are cut in parts that are rounded by themselves, or all of them are rounded and in fp32 none."""
PLAIN = [
    "ps-1",
    "ps-2-cut-by-uneven-host",
    "colocated-cut",
    "all-reduce",
    "stanza-2",
    "stanza-arrival-2-uneven",
    "fsdp",
]
PARTED = ["stanza-2-sliced", "stanza-3-sliced-uneven", "head", "factors"]


@pytest.fixture(scope="module")
def smooth() -> ModelProfile:
    return extract("tests.execute.execute_models:smooth", name="smooth", input_shape=(1, 8, 8), boundary="2.0")


def job_in(
    model: ModelProfile, name: str, precision: Precision, gradients: Wire = Wire.NATIVE, **changes: object
) -> RunJob:
    _, strategy, world, settings = next(v for v in VARIANTS if v[0] == name)
    schedule = schedule_of(model, strategy, world, settings, precision=precision, gradients=gradients)
    return job_of(model, schedule, precision=precision, **changes)


@cache
def _reference(model: ModelProfile, name: str, precision: Precision) -> Trained:
    return train(job_in(model, name, precision))


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.FP16])
@pytest.mark.parametrize("name", [*PLAIN, *PARTED])
def test_every_precision_equals_single_process_training(
    pool: Pool, smooth: ModelProfile, name: str, precision: Precision
) -> None:
    measured = run(pool, job_in(smooth, name, precision))
    own, plain = (_reference(smooth, name, p) for p in (precision, Precision.FP32))
    found = dict(measured.parameters or {})
    tolerance = SAME_ROUNDING if name in PLAIN else OTHER_ROUNDING[precision]
    assert largest_deviation(found, own) <= tolerance
    assert SAME_ROUNDING < largest_deviation(found, plain) <= OTHER_ROUNDING[precision]  # or nothing was rounded
    assert measured.losses == pytest.approx(own.losses, rel=1e-3)
    assert all(values.dtype == "float32" for values in found.values())


@pytest.mark.parametrize("gradients", [Wire.BF16, Wire.FP16])
@pytest.mark.parametrize("precision", [Precision.FP32, Precision.FP16])
@pytest.mark.parametrize(
    "name", ["ps-2-cut-by-uneven-host", "all-reduce", "all-reduce-by-halving-doubling", "stanza-2", "fsdp-by-host"]
)
def test_gradients_may_travel_in_two_bytes(
    pool: Pool, smooth: ModelProfile, name: str, precision: Precision, gradients: Wire
) -> None:
    measured = run(pool, job_in(smooth, name, precision, gradients))
    deviation = largest_deviation(dict(measured.parameters or {}), _reference(smooth, name, precision))
    assert SAME_ROUNDING < deviation <= OTHER_ROUNDING[Precision(gradients)]


@pytest.mark.parametrize(
    "name", ["ps-2-cut", "all-reduce-by-tree", "all-reduce", "stanza-3-sliced-uneven", "head", "factors"]
)
def test_bytes_are_those_of_the_schedule_in_both_engines(pool: Pool, smooth: ModelProfile, name: str) -> None:
    job = job_in(smooth, name, Precision.FP16, Wire.BF16)
    s, plain = job.schedule, job_in(smooth, name, Precision.FP32)
    expected = []
    for r in range(s.world_size):
        sent = 0
        for op in s.for_rank(r):
            if isinstance(op, Transfer):
                sent += sum(s.message_bytes(op, r, d) for d in s.destinations(op, r))
            elif isinstance(op, Collective):
                sent += collective_bytes(op, s.group(op.ranks), r, s.itemsize_of(op))[0]
        expected.append(sent)
    measured = run(pool, job)
    assert [n // job.training.iterations for n in measured.sent_bytes] == expected
    predicted = predict(s, smooth, cluster(s.world_size), fold_ranks=False)
    assert [predicted.sent_bytes[r] for r in range(s.world_size)] == expected
    assert sum(measured.sent_bytes) < 0.8 * sum(run(pool, plain).sent_bytes)


def test_activations_that_are_to_travel_in_fp32_do(pool: Pool, smooth: ModelProfile) -> None:
    """A user's setting stands, whatever the precision."""
    given: dict[str, object] = {"fc_workers": 2, "fc_parallel": "model", "activations": "fp32"}
    schedule = schedule_of(smooth, "stanza", 4, given, precision=Precision.BF16)
    assert schedule == schedule_of(smooth, "stanza", 4, given)
    job = job_of(smooth, schedule, precision=Precision.BF16)
    found = dict(run(pool, job).parameters or {})
    assert largest_deviation(found, train(job)) <= OTHER_ROUNDING[Precision.BF16]


@pytest.mark.parametrize("name", ["ps-1", "all-reduce"])
def test_an_overflow_ends_the_run(pool: Pool, smooth: ModelProfile, name: str) -> None:
    job = job_in(smooth, name, Precision.FP16, loss_scale=1e9)
    with pytest.raises(RunError, match=r"the gradients of bundle \S+ have overflowed in fp16\n.*training.loss_scale"):
        run(pool, job)
    with pytest.raises(RunError, match="overflowed"):
        train(job)
    run(pool, job_in(smooth, name, Precision.FP16))  # and the ranks are as good as before


def test_the_loss_is_scaled_where_something_is_in_fp16(smooth: ModelProfile) -> None:
    assert Arithmetic.of(job_in(smooth, "stanza-2", Precision.FP16)).scale == pytest.approx(1024 / 6)
    assert Arithmetic.of(job_in(smooth, "all-reduce", Precision.FP32, Wire.FP16, loss_scale=6.0)).scale == 1.0
    for precision in (Precision.FP32, Precision.BF16):
        assert Arithmetic.of(job_in(smooth, "stanza-2", precision, Wire.BF16)) == Arithmetic(precision=precision)


def test_sums_are_formed_in_the_type_of_the_total() -> None:
    """257 times 1 is 256 in bfloat16."""
    total = torch.zeros(1)
    add_in_order([torch.ones(1, dtype=torch.bfloat16)] * 257, total)
    assert float(total) == 257


# ---- what devices can do ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "capability", "can"),
    [
        ("cpu", None, "fp32 bf16 fp16"),
        ("cuda", (9, 0), "fp32 tf32 bf16 fp16"),
        ("cuda", (8, 0), "fp32 tf32 bf16 fp16"),
        ("cuda", (7, 5), "fp32 fp16"),
        ("cuda", (7, 0), "fp32 fp16"),
        ("cuda", (6, 0), "fp32"),
        ("cuda", None, "fp32 tf32 bf16 fp16"),
        ("tpu", None, "fp32"),
    ],
)
def test_what_devices_can_train_in(kind: str, capability: tuple[int, int] | None, can: str) -> None:
    assert supported(kind, capability) == can.split()
    for precision in Precision:
        assert (unsupported(precision, kind, capability) is None) == (precision in can.split())


def test_what_is_missing_is_said() -> None:
    assert unsupported(Precision.BF16, "cuda", (7, 0)) == "bf16 needs compute capability 8.0, and this GPU has 7.0"
    assert unsupported(Precision.TF32, "cpu", None) == "TF32 is a mode of NVIDIA's tensor cores"


def test_ranks_that_cannot_are_refused_before_anything_starts(pool: Pool, smooth: ModelProfile) -> None:
    begun: list[int] = []
    job = job_in(smooth, "all-reduce", Precision.TF32)
    with pytest.raises(InputError, match=r"rank 0 on .* cannot train in tf32: TF32 is") as error:
        execute([job], pool, between=begun.append)
    assert not begun
    assert error.value.hint == "it can in fp32 or bf16 or fp16"
    with pytest.raises(InputError, match="cannot train in tf32"):
        calibrate(pool, smooth, [job.schedule], precision=Precision.TF32)


# ---- torch's switches ------------------------------------------------------------------------------------------------


def _switches() -> list[object]:
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    new = [cuda.fp32_precision, cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision]  # type: ignore[attr-defined]
    return [*new, cuda.allow_tf32, cudnn.allow_tf32]


@pytest.fixture
def kept() -> Iterator[list[object]]:
    before = _switches()
    yield before
    assert _switches() == before


@pytest.mark.parametrize("precision", Precision)
def test_switches_are_set_for_all_products_and_restored(kept: list[object], precision: Precision) -> None:
    strict = precision is Precision.FP32
    with switched(precision):
        assert _switches() == (["ieee"] * 3 + [False] * 2 if strict else ["tf32"] * 3 + [True] * 2)
        with switched(Precision.FP32):
            assert _switches() == ["ieee"] * 3 + [False] * 2
    assert _switches() == kept
    with pytest.raises(RuntimeError, match="on the way"), switched(precision):
        raise RuntimeError("on the way")


# ---- timing ----------------------------------------------------------------------------------------------------------


def test_blocks_are_timed_in_the_precision(pool: Pool, smooth: ModelProfile) -> None:
    job = job_in(smooth, "all-reduce", Precision.BF16)
    profile = calibrate(pool, smooth, [job.schedule], precision=Precision.BF16)
    assert profile.precision == "bf16"
    assert any("at bf16, not at fp32" in what for what in differences(profile, smooth, "fp32"))


@pytest.mark.parametrize(("precision", "dtype"), [(Precision.FP32, torch.float32), (Precision.FP16, torch.float16)])
def test_what_is_timed_is_what_is_trained(smooth: ModelProfile, precision: Precision, dtype: torch.dtype) -> None:
    schedule = alone(smooth, 4, apart=True)
    context = cast(Context, SimpleNamespace(device=torch.device("cpu"), accelerator=Cpu()))
    _, held, bundles = build(schedule, smooth, 0, 1, context.device)
    passes = _filled(smooth, 1, schedule, context, held, bundles, precision)
    values = passes.values.generations[0]
    assert {output.dtype for output in values.outputs.values()} == {dtype}
    assert {values.gradients[name, 0].dtype for name in passes.values.names[:-1]} == {dtype}
