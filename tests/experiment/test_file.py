"""Experiment files: what they may say, what `--set` changes, and what a mistake is answered with."""

from pathlib import Path

import pytest

from stanza_sim.base import config
from stanza_sim.base.errors import InputError
from stanza_sim.experiment.file import load_experiment
from stanza_sim.strategies.stanza import Settings as StanzaSettings

GOOD = """\
name: example
cluster: star
nodes: 4
network: {rate: 25Gbps}
batch_per_worker: 16
models:
  - alexnet
  - {model: vgg16, name: mine, batch_per_worker: 8, boundary: classifier.0}
strategies:
  - all_reduce
  - {strategy: stanza, label: two FC workers, settings: {fc_workers: 2}}
training:
  iterations: 30
  warmup: 5
  optimizer: {lr: 0.1, schedule: {kind: step, every: 10, factor: 0.5}}
  data: digits
execute: {timeout: 90s, threads_per_rank: 2, backend: gloo}
"""


@pytest.fixture
def write(tmp_path: Path):
    def make(text: str = GOOD, *changes: tuple[str, str]) -> Path:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "example.yaml"
        path.write_text(text)
        return path

    return make


def test_reads_everything(write):
    path = write()
    loaded = load_experiment(str(path))
    e = loaded.value
    assert loaded.path == path
    assert (e.name, e.cluster, e.nodes, e.seed, e.precision) == ("example", "star", 4, 1, "fp32")
    assert e.network.rate == 25e9 / 8
    assert [m.title for m in e.models] == ["alexnet", "mine"]
    assert [e.batch_of(m) for m in e.models] == [16, 8]
    assert [s.title for s in e.strategies] == ["all_reduce", "two FC workers"]
    assert e.strategies[1].settings == StanzaSettings(fc_workers=2)
    assert (e.training.iterations, e.training.warmup, e.training.data) == (30, 5, "digits")
    assert (e.training.optimizer.lr, e.training.optimizer.schedule.every) == (0.1, 10)
    assert (e.execute.timeout, e.execute.threads_per_rank, e.execute.backend) == (90.0, 2, "gloo")


def test_the_name_of_a_factory_is_the_callables(write):
    path = write(GOOD, ("- alexnet", '- {model: "mynets.small:net", input_shape: [1, 8, 8]}'))
    assert load_experiment(str(path)).value.models[0].title == "net"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [16, 8]),
        (["batch_per_worker=64"], [64, 64]),
        (["batch_per_worker=64", "models.1.batch_per_worker=4"], [64, 4]),
        (["models.1.batch_per_worker=4"], [16, 4]),
        (["batch_per_worker=64", "models.1={model: vgg19, batch_per_worker: 2}"], [64, 2]),
    ],
)
def test_batch_per_worker_overrides_the_models_own(write, overrides, expected):
    e = load_experiment(str(write()), overrides).value
    assert [e.batch_of(m) for m in e.models] == expected


def test_overrides_by_short_name_and_path(write):
    e = load_experiment(
        str(write()), ["nodes=8", "network.rate=1Gbps", "strategies.1.settings.fc_workers=3", "training.data=synthetic"]
    ).value
    assert (e.nodes, e.network.rate, e.training.data) == (8, 1.25e8, "synthetic")
    assert e.strategies[1].settings == StanzaSettings(fc_workers=3)


BAD = [
    # (change, place in the message, what it says)
    (("nodes: 4", "nodez: 4"), "example.yaml:3: nodez", "did you mean nodes"),
    (("nodes: 4", "nodes: 0"), "example.yaml:3: nodes", "greater than or equal to 1"),
    (("nodes: 4", "nodes: four"), "example.yaml:3: nodes", "whole number"),
    (("25Gbps", "25GB"), "example.yaml:4: network.rate", "GB/s"),
    (("25Gbps", "-25Gbps"), "example.yaml:4: network.rate", "negative"),
    (("batch_per_worker: 16", "batch_per_worker: -1"), "example.yaml:5", "greater than or equal to 1"),
    (("- all_reduce", "- all_reduced"), "example.yaml:10", "no strategy 'all_reduced'"),
    (("fc_workers: 2", "fc_worker: 2"), "strategies.1.settings.fc_worker", "did you mean fc_workers"),
    (("fc_workers: 2", "fc_workers: true"), "strategies.1.settings.fc_workers", "should be a whole number"),
    (("fc_workers: 2", "fc_workers: '2'"), "strategies.1.settings.fc_workers", "should be a whole number"),
    (("fc_workers: 2", "overlap: 1"), "strategies.1.settings.overlap", "should be true or false"),
    (("batch_per_worker: 16", f"batch_per_worker: 1{'0' * 400}"), "example.yaml:5", "less than or equal to 1000000000"),
    (("data: digits\n", "data: digits\nsimulation: {jitter: {kind: lognormal, spread: 1.0e+300}}\n"), "spread", "1000"),
    (("fc_workers: 2", "fc_workers: 0"), "strategies.1.settings.fc_workers", "greater than or equal to 1"),
    (
        ("label: two FC workers", 'label: "two\\nlines"'),
        "strategies.1.label",
        "'two\\nlines' has characters that cannot",
    ),
    (("label: two FC workers", "label: all_reduce"), "example.yaml", "two strategies are called 'all_reduce'"),
    (("name: mine", "name: alexnet"), "example.yaml", "two models are called 'alexnet'"),
    (("name: mine", "name: a b"), "models.1.name", "pattern"),
    (("warmup: 5", "warmup: 29"), "example.yaml:12: training", "fewer than two"),
    (("every: 10, ", ""), "training.optimizer.schedule", "`every` and `factor`"),
    (("kind: step", "kind: cosine"), "training.optimizer.schedule", "kind step"),
    (("{lr: 0.1,", "{kind: adamw, momentum: 0.9,"), "training.optimizer", "adamw has no `momentum`"),
    (("{lr: 0.1,", "{betas: [0.9, 0.99],"), "training.optimizer", "sgd has no `betas`"),
    (("{lr: 0.1,", "{kind: adam, betas: [0.9, 1.0],"), "training.optimizer.betas.1", "less than 1"),
    (("{lr: 0.1,", "{kind: lamb,"), "training.optimizer.kind", "should be 'sgd', 'adam' or 'adamw'"),
    (("{lr: 0.1,", "{no_decay: [bias],"), "training.optimizer", "`no_decay` has no use without weight decay"),
    (("{lr: 0.1,", "{clip_norm: 0,"), "training.optimizer.clip_norm", "greater than 0"),
    (("kind: step", "kind: steps"), "training.optimizer.schedule.kind", "'step'"),
    (("lr: 0.1", "lr: 0"), "training.optimizer.lr", "greater than 0"),
    (("timeout: 90s", "timeout: 90"), "execute.timeout", "no unit"),
    (("backend: gloo", "backend: mpi"), "execute.backend", "'nccl'"),
    (("backend: gloo", "backend: nccl, issue: in_order"), "execute", "order of their announcements"),
    (("cluster: star\n", ""), "example.yaml", "'cluster' is missing"),
    (("cluster: star\n", "cluster: star\nlaunch: lazy\n"), "launch", "'eager'"),
    (("batch_per_worker: 8, ", "throughput: {V100: {batch: 8}}, "), "models.1.throughput.V100", "samples_per_s"),
    (
        ("batch_per_worker: 8, ", "throughput: {V100: {samples_per_s: -1, batch: 8}}, "),
        "models.1.throughput.V100.samples_per_s",
        "greater than 0",
    ),
    (
        ("cluster: star\n", "cluster: star\nprecision: fp8\n"),
        "example.yaml:3: precision",
        "'fp32', 'tf32', 'bf16' or 'fp16'",
    ),
    (("cluster: star\n", "cluster: star\ngradients: int8\n"), "gradients", "'parameter', 'bf16' or 'fp16'"),
    (("warmup: 5", "warmup: 5\n  loss_scale: 8"), "example.yaml", "training.loss_scale has no use: nothing is in fp16"),
    (("warmup: 5", "warmup: 5\n  loss_scale: -8"), "training.loss_scale", "greater than 0"),
    (("fc_workers: 2", "activations: fp8"), "strategies.1.settings.activations", "'fp32', 'bf16' or 'fp16'"),
    (("batch_per_worker: 8, ", "factory_kwarg: {}, "), "models.1.factory_kwarg", "did you mean factory_kwargs"),
]


@pytest.mark.parametrize(("change", "where", "message"), BAD, ids=[b[0][1] or b[0][0].strip() for b in BAD])
def test_a_mistake_is_named_with_its_place(write, change, where, message):
    with pytest.raises(InputError) as caught:
        load_experiment(str(write(GOOD, change)))
    assert where in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nodes", "not key=value"),
        ("nodez=3", "did you mean nodes"),
        ("strategies.9.label=x", "no entry 9"),
        ("strategies.1.settings.fc_workers=many", "whole number"),
        ("network.rate=10GB", "GB/s"),
    ],
)
def test_a_bad_override_is_named(write, override, message):
    with pytest.raises(InputError) as caught:
        load_experiment(str(write()), [override])
    assert "--set" in str(caught.value)
    assert message in str(caught.value)


def test_a_truncated_file_names_the_line(write):
    with pytest.raises(InputError, match=r"example\.yaml:\d+: is not valid YAML"):
        load_experiment(str(write(GOOD[: GOOD.index("10, factor")])))


@pytest.mark.parametrize("name", config.available("experiments"))
def test_shipped_experiments_are_good(name):
    e = load_experiment(name).value
    assert e.name == name
    compared = {"fsdp", "pipeline"} if name == "language_model" else {"parameter_server"}
    assert {s.strategy for s in e.strategies} >= {*compared, "all_reduce", "stanza"}


def test_the_batch_of_a_language_model_in_tokens(write):
    def load(text: str):
        return load_experiment(str(write(GOOD, ("  - alexnet\n", f"  - {{{text}}}\n")))).value

    for text, batch in (
        ("model: gpt2, tokens_per_worker: 8192", 8),
        ("model: llama_1b, sequence: 512, tokens_per_worker: 8192", 16),
        ("model: 'own:net', input_shape: [64], tokens_per_worker: 128", 2),
        ("model: bert_base, batch_per_worker: 7", 7),
    ):
        experiment = load(text)
        assert experiment.batch_of(experiment.models[0]) == batch
    for text, message in (
        ("model: gpt2, tokens_per_worker: 3000", "3000 tokens are no whole number of sequences of 1024\n.*2048 or"),
        ("model: gpt2, tokens_per_worker: 1024, batch_per_worker: 1", "say the same"),
        ("model: vgg16, tokens_per_worker: 1024", "how many tokens a sample of vgg16 has is not known"),
    ):
        with pytest.raises(InputError, match=message):
            load(text)
    path = str(write(GOOD, ("  - alexnet\n", "  - {model: gpt2, tokens_per_worker: 8192}\n")))
    changed = load_experiment(path, ["batch_per_worker=3"]).value
    assert [changed.batch_of(m) for m in changed.models] == [3, 3]
