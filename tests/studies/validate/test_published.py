"""Published measurements: files are read or refused, rules set rows up, errors are summed up, the command reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import stanza_sim as ss
from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import app
from stanza_sim.model.profile import with_fused_tensors
from stanza_sim.studies.validate.published import rules, tables
from stanza_sim.studies.validate.published.names import device_name, model_of
from stanza_sim.studies.validate.published.scores import Outcome, RowKind, fitted_constant, training_groups
from stanza_sim.studies.validate.published.suite import OWN, load_published
from stanza_sim.studies.validate.published.training import predict_row

HEAD = (
    "model,strategy,gpu,gpus_per_host,hosts,nic_gbps,transport,intra,batch_per_gpu,precision,samples_per_s,"
    "single_gpu_samples_per_s,usable"
)
ROW = "resnet50,horovod,Tesla V100-SXM2-16GB,4,2,25,tcp,nvlink,32,fp32,2000,300,yes"
SUITE = load_published("published").value


def _file(tmp_path: Path, *rows: str, head: str = HEAD) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def _row(tmp_path: Path, **changes: str) -> tables.TrainingRow:
    cells = dict(zip(HEAD.split(","), ROW.split(","), strict=True)) | changes
    return tables.read_training(_file(tmp_path, ",".join(cells.values()), head=",".join(cells)))[0]


# ---- files -----------------------------------------------------------------------------------------------------------


def test_the_projects_own_rows_are_read() -> None:
    rows = tables.read_training(OWN["rows"])
    assert len(rows) == 243
    assert sum(row.scored for row in rows) == 145


def test_rows_without_ids_are_numbered_and_blank_lines_left_out(tmp_path: Path) -> None:
    path = _file(tmp_path, ROW, "", ROW.replace("resnet50", "vgg16"))
    assert [(row.id, row.model) for row in tables.read_training(path)] == [("1", "resnet50"), ("2", "vgg16")]


def test_a_byte_order_mark_and_windows_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbf" + f"{HEAD}\r\n{ROW}\r\n".encode())
    assert tables.read_training(path)[0].gpus == 8


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (ROW.replace(",4,2,", ",0,2,"), "gpus_per_host is 0"),
        (ROW.replace(",4,2,", ",-4,2,"), "gpus_per_host is -4"),
        (ROW.replace(",4,2,", ",4.5,2,"), "gpus_per_host is 4.5"),
        (ROW.replace(",32,", ",many,"), "batch_per_gpu is 'many'"),
        (ROW.replace(",2000,", ",nan,"), "samples_per_s is nan"),
        (ROW.replace(",yes", ",perhaps"), "usable is 'perhaps'"),
        (ROW.replace("resnet50,", ","), "model is empty"),
        (ROW.replace(",4,2,", ",4000,2000,"), "8,000,000 GPUs"),
        (f"{ROW},more", "14 cells under 13 columns"),
    ],
)
def test_a_wrong_row_is_named_with_its_line(tmp_path: Path, wrong: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        tables.read_training(_file(tmp_path, ROW, wrong))
    assert str(caught.value.where).endswith("rows.csv:3")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no column 'model'"),
        (f"{HEAD}\n".encode(), "has no rows"),
        (HEAD.replace("gpu,", "", 1).encode(), "no column 'gpu'"),
        (f"{HEAD},model\n{ROW},x\n".encode(), "'model' twice"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        tables.read_training(path)


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'a' is there twice"):
        tables.read_training(_file(tmp_path, f"a,{ROW}", f"a,{ROW}", head=f"id,{HEAD}"))


# ---- rules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpu", "device"),
    [
        ("P100", "P100"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("h100 80GB", "H100"),
        ("A1000", None),
        ("Titan X", None),
    ],
)
def test_gpus_by_any_name(gpu: str, device: str | None) -> None:
    assert device_name(gpu) == device


def test_models_by_other_names() -> None:
    assert model_of("ResNet-50", None).name == "resnet50"
    assert model_of("inception3", None).name == "inception_v3"
    bert = model_of("BERT-large", None)
    assert bert.numel == pytest.approx(335e6, rel=0.01)  # Devlin et al. 2018, 340M with the pooler
    with pytest.raises(InputError, match="neither shipped nor extracted"):
        model_of("no_such_model", None)


def test_a_gpu_without_a_device_file_is_stood_in_for_where_its_throughput_is_known(tmp_path: Path) -> None:
    one = predict_row(_row(tmp_path, gpu="Titan X", gpus_per_host="1", hosts="1"), SUITE)
    assert one.predicted == pytest.approx(300)
    half = predict_row(_row(tmp_path, gpu="K80", precision="fp16", gpus_per_host="1", hosts="1"), SUITE)
    assert half.predicted == pytest.approx(300)
    unknown = predict_row(_row(tmp_path, gpu="Titan X", single_gpu_samples_per_s=""), SUITE)
    assert unknown.predicted is None
    assert "Titan X" in unknown.reason


def test_tensors_are_fused_within_blocks_up_to_a_size() -> None:
    model = model_of("resnet50", None)
    fused = with_fused_tensors(model, 2_000_000)
    assert fused.nbytes == model.nbytes
    assert [b.numel for b in fused.blocks] == [b.numel for b in model.blocks]
    assert sum(len(b.tensors) for b in fused.blocks) < 0.5 * sum(len(b.tensors) for b in model.blocks)
    alone = {t.numel for b in model.blocks for t in b.tensors}
    assert all(t.numel * 4 <= 2_000_000 or t.numel in alone for b in fused.blocks for t in b.tensors)
    with pytest.raises(InputError, match="cannot be fused"):
        with_fused_tensors(model, 0)


@pytest.mark.parametrize("name", sorted({row.strategy for row in tables.read_training(OWN["rows"]) if row.scored}))
def test_every_strategy_of_the_own_rows_makes_a_legal_cluster_and_schedule(tmp_path: Path, name: str) -> None:
    outcome = predict_row(_row(tmp_path, strategy=name, gpus_per_host="2"), SUITE)
    assert outcome.reason == ""
    assert outcome.predicted is not None
    assert 0 < outcome.predicted <= 4 * 300


def test_a_strategy_that_is_none_has_its_reason_in_the_report(tmp_path: Path) -> None:
    outcome = predict_row(_row(tmp_path, strategy="gossip"), SUITE)
    assert outcome.predicted is None
    assert not outcome.scored
    assert "gossip" in outcome.reason


def test_one_gpu_is_predicted_as_it_was_measured(tmp_path: Path) -> None:
    outcome = predict_row(_row(tmp_path, gpus_per_host="1", hosts="1"), SUITE)
    assert outcome.predicted == pytest.approx(300)


def test_transports_follow_framework_and_platform(tmp_path: Path) -> None:
    def preset(**changes: str) -> object:
        host = rules.setup_of(_row(tmp_path, **changes), SUITE).topology["hosts"]
        assert isinstance(host, list)
        return host[0]["nic"]["preset"]

    assert preset() == "tcp"
    assert preset(transport="rdma") == "rdma"
    assert preset(strategy="horovod_mpi", transport="rdma") == "mpi"
    assert preset(strategy="tf_distributed") == "grpc"


# ---- scores ----------------------------------------------------------------------------------------------------------


def _outcome(tmp_path: Path, measured: float, predicted: float) -> Outcome:
    row = _row(tmp_path, samples_per_s=str(measured))
    return Outcome(
        id="x",
        kind=RowKind.TRAINING,
        label="x",
        predicted=predicted,
        measured=measured,
        scored=True,
        linear=row.linear,
        groups=(("source", "s"), ("strategy", "t"), ("transport", "u")),
        row=row,
    )


def test_errors_stand_beside_those_of_linear_scaling(tmp_path: Path) -> None:
    found = [_outcome(tmp_path, 2000, 2100), _outcome(tmp_path, 2400, 2400)]
    every = training_groups(found)[0]
    assert every.ours.median_pct == pytest.approx(2.5)
    assert every.linear is not None
    assert every.linear.median_pct == pytest.approx(10.0)
    hard = next(group for group in training_groups(found) if "below 0.9" in group.name)
    assert hard.ours.count == 1


def test_the_constant_makes_the_median_error_of_linear_scaling_least(tmp_path: Path) -> None:
    found = [_outcome(tmp_path, m, 1.0) for m in (1800, 2100, 2150, 2200, 2400)]
    constant = fitted_constant(found)
    assert constant is not None
    errors = [abs(100 * (constant * 2400 / m - 1)) for m in (1800, 2100, 2150, 2200, 2400)]
    assert sorted(errors)[2] < 3


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> list[str]:
    nccl, single = tmp_path / "nccl.csv", tmp_path / "single.csv"
    nccl.write_text("gpus,bytes,time_us_out_of_place\n8,1024,20\n8,67108864,600\n8,0,0\n")
    single.write_text(
        "gpu,framework,precision,model,factory,batch,image,samples_per_s\nA100,PyTorch,fp32,no_such,torchvision,12,224,9\n"
    )
    rows = _file(tmp_path, ROW, ROW.replace(",yes", ",data"), ROW.replace(",yes", ",no"))
    return ["--rows", str(rows), "--nccl", str(nccl), "--single", str(single)]


def test_json_has_every_row_and_scores_what_counts(small: list[str]) -> None:
    result = CliRunner().invoke(app, ["validate", "published", *small, "--json"])
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert [(row["id"], row["kind"], row["scored"]) for row in data["rows"]] == [
        ("1", "training", True),
        ("2", "training", False),
        ("3", "training", False),
        ("1", "nccl", False),
        ("2", "nccl", True),
        ("3", "nccl", False),
        ("1", "single", False),
    ]
    first = data["rows"][0]
    assert first["error_pct"] == pytest.approx(100 * (first["predicted"] / first["measured"] - 1))
    assert first["linear_error_pct"] == pytest.approx(100 * (2400 / 2000 - 1))
    assert data["summary"]["training"][0]["errors_pct"]["rows"] == 1


def test_the_report_is_written_and_printed(small: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = CliRunner().invoke(app, ["validate", "published", *small, "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert {"report.md", "results.csv", "results.json"} <= {path.name for path in out.iterdir()}
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "no_such" in result.stdout


def test_a_dry_run_prints_the_rules_and_every_row(small: list[str]) -> None:
    result = CliRunner().invoke(app, ["validate", "published", *small, "--dry-run"])
    assert result.exit_code == 0, result.output
    assert "Transport:" in result.stdout
    assert "1: all_reduce {fusion: horovod}" in result.stdout
    assert "2: 67,108,864 bytes over [8] GPUs of dgx-a100-16" in result.stdout
    assert "1: no_such of torchvision, 224 pixels, batch 12, on A100 in tf32" in result.stdout


def test_a_dry_run_reads_every_file_and_speaks_json(small: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["validate", "published", *small, "--dry-run", "--json"])
    data = json.loads(result.stdout)
    assert {kind: len(rows) for kind, rows in data["rows"].items()} == {"training": 3, "nccl": 3, "single": 1}
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("gpus,bytes,time_us_out_of_place\n8,many,1\n")
    result = CliRunner().invoke(app, ["validate", "published", "--nccl", str(wrong), "--dry-run"])
    assert result.exit_code == 2
    assert "bytes is 'many'" in result.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["published", "--rows", "no-such.csv"], "no such file"),
        (["published", "--repeats", "3"], "only predicts"),
        (["published", "--set", "causes.weather=true"], "weather"),
        (["published", "--set", "losses.device_spread=-1"], "device_spread"),
        (["emulated", "--rows", "x.csv"], "published measurements"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["validate", *arguments])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_python_has_the_same_rows_as_a_frame(small: list[str]) -> None:
    pytest.importorskip("pandas")
    files = {key.removeprefix("--"): path for key, path in zip(small[::2], small[1::2], strict=True)}
    found = ss.validate_published(**files)
    frame = found.to_frame()
    assert len(found) == len(frame) == 7
    assert list(frame.scored) == [True, False, False, False, True, False, False]
    assert json.loads(found.to_json())["rows"][0]["id"] == "1"
    assert repr(found) == "<PublishedResult of published: 7 rows, 2 scored>"
