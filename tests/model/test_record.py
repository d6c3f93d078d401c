"""The work of modules by kind of op: counted by hand, in blocks as in the whole, and kept between runs."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from stanza_sim.base.errors import InputError  # noqa: E402
from stanza_sim.base.op_kinds import OpKind  # noqa: E402
from stanza_sim.model import recorded as kept  # noqa: E402
from stanza_sim.model import zoo  # noqa: E402
from stanza_sim.model.extract import module_work  # noqa: E402
from stanza_sim.model.extract.record import work_of  # noqa: E402
from stanza_sim.model.module_work import read_works, work_of_profile, write_works  # noqa: E402
from stanza_sim.model.profile import OpWork, PassWork  # noqa: E402
from stanza_sim.model.published_names import source_of, twin_of  # noqa: E402
from stanza_sim.model.recorded import recorded  # noqa: E402
from stanza_sim.model.shipped import Source  # noqa: E402


def by_kind(work: tuple[OpWork, ...]) -> dict[OpKind, OpWork]:
    return {one.kind: one for one in work}


def test_a_linear_layer_by_hand() -> None:
    module = nn.Linear(30, 20, bias=False, device="meta")
    work = by_kind(work_of(module, [((30,), torch.float32)], list(module.parameters())))
    flops, each, weight = 2 * 30 * 20, (30 + 20) * 4, 30 * 20 * 4
    once = PassWork(flops=flops, sample_nbytes=each, fixed_nbytes=weight, kernels=1)
    assert work == {OpKind.LINEAR: OpWork(kind=OpKind.LINEAR, forward=once, backward_input=once, backward_weight=once)}


@pytest.mark.parametrize(
    ("make", "kind", "share"),
    [
        (lambda: nn.Conv2d(8, 12, 1, bias=False), OpKind.CONV_1X1, 8),
        (lambda: nn.Conv2d(8, 12, 3, padding=1, bias=False), OpKind.CONV_3X3, 72),
        (lambda: nn.Conv2d(8, 12, 5, padding=2, bias=False), OpKind.CONV, 200),
        (lambda: nn.Conv2d(8, 12, 3, padding=1, groups=4, bias=False), OpKind.GROUPED, 18),
        (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), OpKind.DEPTHWISE, 9),
    ],
)
def test_convolutions_by_hand(make: object, kind: OpKind, share: int) -> None:
    with torch.device("meta"):
        module = make()  # type: ignore[operator]
    work = by_kind(work_of(module, [((8, 10, 10), torch.float32)], list(module.parameters())))
    outputs = module.out_channels * 100
    each, weight = (800 + outputs) * 4, sum(p.numel() for p in module.parameters()) * 4
    once = PassWork(flops=2 * outputs * share, sample_nbytes=each, fixed_nbytes=weight, kernels=1)
    assert work == {kind: OpWork(kind=kind, forward=once, backward_input=once, backward_weight=once)}


def test_the_samples_need_no_gradient() -> None:
    module = nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10)).to("meta")
    work = by_kind(work_of(module, [((30,), torch.float32)], list(module.parameters()), input_gradient=False))
    assert all(one.backward_input == PassWork() for one in work.values())
    linear = work[OpKind.LINEAR]
    assert linear.forward.flops == 2 * (30 * 20 + 20 * 10)
    assert linear.backward_weight.flops == linear.forward.flops + 2 * 20 * 10  # the second layer's input


def test_sums_of_gradients_that_meet_and_counters_are_no_kernels() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.norm(x)

    module = Residual().to("meta").train()
    work = by_kind(work_of(module, [((16,), torch.float32)], list(module.parameters())))
    assert work[OpKind.NORM].forward.kernels == 1
    assert work[OpKind.ELEMENTWISE].forward.kernels == 1  # x + y, not the counter of batches
    meeting = work[OpKind.ELEMENTWISE].backward_input
    assert (meeting.kernels, meeting.sample_nbytes) == (0, 3 * 16 * 4)


def test_blocks_have_the_flops_of_their_totals() -> None:
    for name in (*zoo.names(), *zoo.WIDE):
        for block in zoo.get(name).blocks:
            sums = [sum(work.passes[i].flops for work in block.work) for i in range(3)]
            assert sums == [block.forward_flops, block.backward_input_flops, block.backward_weight_flops], block.name


def test_the_whole_is_as_much_as_its_blocks() -> None:
    source = zoo.SOURCES["resnet50"]
    whole = module_work(source.factory, source.input_shape, source.factory_kwargs)
    blocks = work_of_profile(zoo.get("resnet50"))
    assert (whole.numel, whole.output_numel) == (blocks.numel, blocks.output_numel)
    for i in range(2):  # forward, and all of backward
        totals = []
        for known in (whole, blocks):
            passes = [p for one in known.work for p in (one.passes[:1] if i == 0 else one.passes[1:])]
            totals.append([sum(getattr(p, key) for p in passes) for key in ("flops", "sample_nbytes", "kernels")])
        assert totals[0] == pytest.approx(totals[1], rel=0.01)


def test_what_was_recorded_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = Source(factory="stanza_sim.model.examples.small:tiny_cnn", input_shape=(1, 8, 8))
    first = recorded(source)
    (path,) = (tmp_path / "stanza-sim" / "work").iterdir()
    monkeypatch.setattr("stanza_sim.model.extract.module_work", None)
    assert recorded(source) == first
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for wrong in ("", "{}", '{"numel": 1, "output_numel": 1, "work": {"conf": []}}', "\xff"):
        path.write_bytes(wrong.encode("latin1"))
        assert recorded(source) == first
    assert kept._key(source) != kept._key(Source(factory=source.factory, input_shape=(1, 16, 16)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))  # a file: nothing can be written below it
    assert recorded(source) == first


def test_works_are_written_and_read(tmp_path: Path) -> None:
    known = {"one": work_of_profile(zoo.get("alexnet"))}
    write_works(known, tmp_path / "works.json")
    assert read_works(tmp_path / "works.json") == known
    work = by_kind(known["one"].work)
    assert len(work) == len(known["one"].work)
    assert work[OpKind.LINEAR].forward.flops == sum(block.forward_flops for block in zoo.get("alexnet").fc_blocks)


def test_modules_that_cannot_be_recorded() -> None:
    with pytest.raises(InputError, match=r"cannot be recorded on samples of 5"):
        module_work("stanza_sim.model.examples.small:tiny_cnn", (5,))


def test_published_names() -> None:
    assert twin_of("mobilenetv2_100") == "mobilenet_v2"
    assert twin_of("regnetx_080") == "regnet_x_8gf"
    assert twin_of("swin_tiny_patch4_window7_224") == "swin_t"
    assert twin_of("tf_efficientnet_b3.ns_jft_in1k") == "efficientnet_b3"
    assert twin_of("vit_base_patch16_224") == "vit_b_16"
    assert twin_of("convnext_tiny_in22k") == "convnext_tiny"
    assert twin_of("seresnet50") is None
    assert twin_of("regnetx_002") is None
    assert source_of("inception_v3", "torchvision", 299).factory_kwargs["aux_logits"] is False
    assert source_of("dla60", "timm", 224).factory_kwargs == {"model_name": "dla60"}
    with pytest.raises(InputError, match="torchvision has no model like timm's 'dla60'"):
        source_of("dla60", "torchvision twin", 224)
    with pytest.raises(InputError, match="factory is 'keras'\n  it must be one of torchvision, timm"):
        source_of("vgg16", "keras", 224)


@pytest.mark.parametrize(
    ("name", "factory"),
    [
        ("hf-hub:somebody/something", "timm"),
        ("local-dir:/tmp", "timm"),
        ("resnet.torch.hub.load", "torchvision"),
        ("vgg16:x", "torchvision"),
        ("", "timm"),
        ("a b", "timm"),
    ],
)
def test_a_row_of_a_file_leads_to_no_hub_and_no_other_attribute(name: str, factory: str) -> None:
    with pytest.raises(InputError, match="no name of a model"):
        source_of(name, factory, 224)
    assert source_of("resnet50.a1_in1k", "timm", 224).factory_kwargs == {"model_name": "resnet50.a1_in1k"}
