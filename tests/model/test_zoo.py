from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.model import shipped, zoo
from stanza_sim.model.extract.__main__ import fresh, main
from stanza_sim.model.extract.chain import chain_of
from stanza_sim.model.extract.factory import build
from stanza_sim.model.extract.inputs import Input
from stanza_sim.model.extract.measure import measure
from stanza_sim.model.extract.trace import trace
from stanza_sim.model.profile import Block
from stanza_sim.model.profile_json import from_json, to_json

#: Counted from torchvision's definitions: convolution and linear layers, outputs of leaf modules.
COUNTS = {r["model"]: r for r in csv.DictReader(Path(__file__).with_name("data").joinpath("model_counts.csv").open())}

#: Positions of the transformers that are shipped.
TOWERS = {"vit_b_16": 197}


def training_flops(blocks: tuple[Block, ...]) -> int:
    return sum(b.forward_flops + b.backward_input_flops + b.backward_weight_flops for b in blocks)


def leaf_module_mfloats(factory: str, kwargs: dict[str, object], size: int) -> float:
    """Millions of floats per sample that leaf modules (not functions) write in one forward pass."""
    module = build(factory, kwargs, device="meta")
    traced = trace(module, (Input(name="", shape=(3, size, size)),), "test")
    measured = measure(module, traced, "test")
    return sum(w.bytes_touched for n, w in measured.work.items() if n.op == "call_module") / 4e6


def test_every_count_has_its_table() -> None:
    assert {*zoo.names(), "inception_v3+aux"} == {*COUNTS, *TOWERS}


@pytest.mark.parametrize("name", TOWERS)
def test_tables_of_towers_equal_a_fresh_extraction_and_closed_forms(name: str) -> None:
    profile = zoo.get(name)
    assert profile == fresh(name)
    (first, *layers, head), positions = profile.blocks, TOWERS[name]
    width, ends = 768, 768 * profile.num_classes
    assert [b.name for b in profile.fc_blocks] == [head.name]
    assert len(layers) == 12
    each = 12 * width * width + 13 * width
    norm = 2 * width  # the last one, in the last layer's block
    assert [b.numel for b in layers] == [each] * 11 + [each + norm]
    # four products of (width, width), two of them four times as wide, and those of all pairs of positions, twice
    products = 2 * positions * 12 * width * width
    pairs = 2 * 2 * positions * positions * width
    assert {b.forward_flops for b in layers} == {products + pairs}
    assert {(b.backward_input_flops, b.backward_weight_flops) for b in layers} == {(products + 2 * pairs, products)}
    labels = profile.labels.compared(head.output_shape)
    assert head.forward_flops == 2 * labels * ends
    assert profile.numel == 86_567_656
    assert first.forward_flops == 2 * 196 * 768 * 3 * 16 * 16


@pytest.mark.parametrize("name", [n for n in zoo.names() if n in COUNTS])
def test_tables_equal_a_fresh_extraction_and_the_counts(name: str) -> None:
    profile = zoo.get(name)
    assert profile == fresh(name)
    row = COUNTS[name]
    conv, fc = profile.conv_blocks, profile.fc_blocks
    forward = [sum(b.forward_flops for b in part) for part in (conv, fc)]
    assert profile.input_shape == (3, int(row["input"]), int(row["input"]))
    assert profile.numel == int(row["params"])
    assert sum(b.numel for b in conv) == int(row["conv_params"])
    assert sum(b.numel for b in fc) == int(row["fc_params"])
    assert round(100 * sum(b.numel for b in fc) / profile.numel, 2) == float(row["fc_pct"])
    assert conv[-1].output_numel == int(row["boundary_floats"])
    assert round(forward[0] / 1e9, 4) == float(row["conv_fwd_GFLOP"])
    assert round(forward[1] / 1e9, 4) == float(row["fc_fwd_GFLOP"])
    assert round(100 * forward[1] / sum(forward), 2) == float(row["fc_flop_pct"])
    assert round(training_flops(conv) / 1e9, 4) == float(row["conv_train_GFLOP"])
    assert round(training_flops(fc) / 1e9, 4) == float(row["fc_train_GFLOP"])
    assert sum(len(b.tensors) for b in profile.blocks) == int(row["n_param_tensors"])
    assert profile.num_classes == 1000
    assert profile.itemsize == 4


@pytest.mark.parametrize("name", ["alexnet", "vgg19", "inception_v3", "resnet50", "resnet152"])
def test_bytes_touched_are_the_leaf_modules_outputs_and_those_of_functions(name: str) -> None:
    source, profile = zoo.SOURCES[name], zoo.get(name)
    modules = leaf_module_mfloats(source.factory, dict(source.factory_kwargs), source.input_shape[1])
    assert round(modules, 2) == float(COUNTS[name]["leaf_out_Mfloats"])
    touched = sum(b.bytes_touched for b in profile.blocks) / 4e6
    if name in ("alexnet", "vgg19"):  # without functions
        assert touched == pytest.approx(modules)
    elif name.startswith("resnet"):  # one sum per bottleneck, of its output's size
        sums = sum(b.output_numel for b in profile.blocks if b.name.startswith("layer")) / 1e6
        last = profile.blocks[-2]  # its output is averaged over 7 x 7
        assert last.output_shape == (2048,)
        assert touched - modules == pytest.approx(sums + (7 * 7 - 1) * 2048 / 1e6)


def test_inception_with_its_auxiliary_classifier() -> None:
    module = build("model_nets:TwoHeads", device="meta")
    blocks = chain_of(module, (Input(name="", shape=(3, 299, 299)),), "test").blocks
    row = COUNTS["inception_v3+aux"]
    assert sum(p.numel() for p in module.parameters()) == int(row["params"])
    assert sum(len(b.parameters) for b in blocks) == int(row["n_param_tensors"])
    forward = sum(b.work.forward_flops for b in blocks)
    training = forward + sum(b.work.backward_input_flops + b.work.backward_weight_flops for b in blocks)
    assert round(forward / 1e9, 4) == pytest.approx(float(row["conv_fwd_GFLOP"]) + float(row["fc_fwd_GFLOP"]), abs=1e-4)
    assert round(training / 1e9, 4) == pytest.approx(
        float(row["conv_train_GFLOP"]) + float(row["fc_train_GFLOP"]), abs=1e-4
    )
    assert round(leaf_module_mfloats("model_nets:TwoHeads", {}, 299), 2) == float(row["leaf_out_Mfloats"])


def test_block_counts_and_names() -> None:
    assert [b.name for b in zoo.get("alexnet").blocks] == [
        *("features.0", "features.3", "features.6", "features.8", "features.10"),
        *("classifier.1", "classifier.4", "classifier.6"),
    ]
    assert {n: len(zoo.get(n).blocks) for n in zoo.names()} == {
        "alexnet": 8,
        "vgg16": 16,
        "vgg19": 19,
        "inception_v3": 17,
        "resnet50": 18,
        "resnet101": 35,
        "resnet152": 52,
        "vit_b_16": 14,
    }
    assert [b.name for b in zoo.get("resnet50").blocks[:3]] == ["conv1", "layer1.0", "layer1.1"]
    assert "Mixed_5b" in [b.name for b in zoo.get("inception_v3").blocks]


def test_load_model() -> None:
    assert zoo.load_model("vgg16") is zoo.get("vgg16")
    assert zoo.load_model("vgg16", input_shape=(3, 224, 224), name="v").name == "v"
    assert zoo.load_model("vgg16", boundary="classifier.3").boundary == 14
    assert zoo.load_model("inception_v3", factory_kwargs={"aux_logits": False}).boundary == 16
    own = zoo.load_model("model_nets:mlp", input_shape=(4,), factory_kwargs={"width": 5}, boundary="4")
    assert (own.name, own.boundary, own.blocks[1].output_shape) == ("mlp", 2, (5,))
    assert (own.factory, own.factory_kwargs) == ("model_nets:mlp", (("width", 5),))
    with pytest.raises(InputError, match="unknown model 'resnet15'\n  did you mean 'resnet152'"):
        zoo.load_model("resnet15")
    with pytest.raises(InputError, match=r"unknown model '\.\./alexnet'"):
        zoo.load_model("../alexnet")
    with pytest.raises(InputError, match=r"table for input_shape \[3, 224, 224\].*\n.*torchvision.models:vgg16"):
        zoo.load_model("vgg16", input_shape=(3, 64, 64))
    with pytest.raises(InputError, match="table for input_shape"):
        zoo.load_model("vgg16", factory_kwargs={"num_classes": 10})
    with pytest.raises(InputError, match="needs an input_shape"):
        zoo.load_model("model_nets:mlp")


@pytest.mark.processes
def test_tables_work_without_torch_and_the_rest_says_what_to_install() -> None:
    code = """
import sys
sys.modules["torch"] = None
from stanza_sim.base.errors import InputError
from stanza_sim.model import zoo
print(sum(len(zoo.get(n).blocks) for n in (*zoo.names(), "gpt2")))
try:
    zoo.load_model("model_nets:mlp", input_shape=(4,))
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.startswith("193\n")
    assert "pip install 'stanza-sim[torch]'" in done.stdout


def test_write_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "SOURCES", {"alexnet": shipped.SOURCES["alexnet"]})
    assert main(["--write-zoo", "--to", str(tmp_path)]) == 0
    table = Path(zoo.__file__).with_name("data") / "alexnet.json"
    assert (tmp_path / "alexnet.json").read_bytes() == table.read_bytes()
    assert from_json(table.read_text(), where="alexnet") == zoo.get("alexnet")
    assert to_json(zoo.get("alexnet")) == table.read_text()


def test_write_zoo_to_a_folder_that_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shipped, "SOURCES", {})
    (tmp_path / "file").touch()
    assert main(["--write-zoo", "--to", str(tmp_path / "file")]) == 2
    assert "cannot write to" in capsys.readouterr().err
