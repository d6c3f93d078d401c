"""The table fits 80 columns and cuts no number off."""

import io
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from stanza_sim.execute.rank.job import ComputeMode
from stanza_sim.report.result import Drift, Result
from stanza_sim.report.table import fixed, print_result
from stanza_sim.simulate.residual import Corner, Spread


def printed(*rows, width: int = 80) -> str:
    out = io.StringIO()
    print_result(Result(experiment="example", rows=rows), Console(file=out, width=width, highlight=False))
    return out.getvalue()


def test_a_row_with_its_measurement(make_row):
    text = printed(make_row(measured=True))
    head, _, tail = text.partition("    predicted less measured")
    assert head.splitlines() == [
        "example: 2 nodes of star, fp32, real compute",
        "",
        "net, 4 samples per worker",
        "strategy    iteration  samples/s  speed-up  exposed  bound",
        "                   ms                            ms     ms",
        "all-reduce       7.60      1,053     1.00x     4.00   4.00",
        "    bottleneck: node-0 transmit side (worker, 1 more like it), 53% busy",
        "",
        "strategy    predicted    measured        spread  samples/s  error",
        "                   ms  median, ms            ms                 %",
        "all-reduce       7.60       10.00  9.50 - 12.25        800  -24.0",
    ]
    assert tail.splitlines()[:3] == [
        ", ms: all_reduce -2.00, forward -0.50, update +0.10",
        "    loss 1.77 -> 0.775, accuracy 95.3%",
        "costs: roofline V100, by hand",
    ]


def test_how_the_machine_moved_stands_below_the_error(make_row):
    row = make_row(measured=True, drift=Drift(change=0.031))
    text = printed(row)
    assert "    machine: +3.1%\n" in text
    assert "machine: how much longer the row's blocks took right after it than" in text
    busy = replace(row.measurement, others=0.12, stolen=0.004)
    text = printed(replace(row, drift=Drift(change=-0.004, against_profile=0.2), measurement=busy))
    assert "    machine: -0.4%, +20.0% against the profile, 12% of the cores for other\n    processes\n" in text
    assert "machine" not in printed(make_row(measured=True))
    stolen = replace(row.measurement, stolen=0.05)
    assert "machine: 5% of the cores for the virtual" in printed(replace(row, drift=None, measurement=stolen))


def test_emulated_compute_is_said_and_has_no_losses(make_row):
    row = make_row(measured=True)
    emulated = replace(row.measurement, compute=ComputeMode.EMULATED, losses=(), scores=())
    text = printed(replace(row, measurement=emulated))
    assert text.splitlines()[0] == "example: 2 nodes of star, fp32, emulated compute"
    assert "loss" not in text
    assert "compute" not in printed(make_row()).splitlines()[0]


def test_a_dilated_run_is_called_that(make_row):
    row = make_row(measured=True)
    run = replace(row.measurement, compute=ComputeMode.EMULATED, losses=(), scores=(), dilation=40.0)
    text = printed(replace(row, measurement=run, undilated=replace(row.prediction, iteration_s=9e-3)))
    assert text.splitlines()[0] == "example: 2 nodes of star, fp32, emulated compute, dilated 40 times"
    assert "    undilated, as the topology states it: 9.00 ms predicted, -10.0%" in text.splitlines()
    assert "dilated" not in printed(make_row(measured=True))


def test_speed_up_is_against_the_first_row_of_the_same_model(make_row):
    def at(label: str, model: str, rate: float):
        row = make_row(label=label, model=model)
        return replace(row, prediction=replace(row.prediction, samples_per_s=rate))

    text = printed(at("a", "one", 100.0), at("b", "one", 250.0), at("c", "two", 10.0), at("d", "two", 5.0))
    factors = [word for line in text.splitlines() for word in line.split() if word.endswith("x") and word[0].isdigit()]
    assert factors == ["1.00x", "2.50x", "1.00x", "0.50x"]


def test_a_prediction_that_did_not_settle_says_so(make_row):
    row = make_row()
    assert "did not settle" not in printed(row)
    assert "did not settle" in printed(replace(row, prediction=replace(row.prediction, settled=False)))


LABELS = st.text(alphabet="abcdefg ,-", min_size=1, max_size=60).filter(str.strip)
SECONDS = st.floats(min_value=1e-6, max_value=5e3)


def test_models_of_tokens_have_tokens_per_second(make_row):
    text = printed(make_row(measured=True, sample_tokens=1024))
    assert "sequences of 1,024 tokens per worker" in text
    assert text.count("tokens/s") == 2
    assert f"{8 / 7.6e-3 * 1024:,.0f}" in text


def test_any_row_keeps_to_80_columns(make_row):
    base = make_row(measured=True)

    @given(LABELS, SECONDS, SECONDS, st.floats(min_value=0.1, max_value=1e6))
    def check(label, iteration, exposed, rate):
        prediction = replace(base.prediction, iteration_s=iteration, exposed_comm_s=exposed, samples_per_s=rate)
        text = printed(replace(base, label=label.strip(), prediction=prediction), replace(base, label="other"))
        lines = text.splitlines()
        assert max(map(len, lines)) <= 80, text
        assert "…" not in text
        assert fixed([iteration * 1e3, base.prediction.iteration_s * 1e3])[0] in text

    check()


@given(st.lists(st.floats(min_value=1e-3, max_value=1e7), min_size=1))
def test_numbers_of_a_column_keep_three_digits_of_the_smallest(values):
    cells = fixed(values)
    assert len({c.partition(".")[2] and len(c.partition(".")[2]) for c in cells}) == 1
    for cell, value in zip(cells, values, strict=True):
        shown = float(cell.replace(",", ""))
        assert abs(shown - value) <= max(5e-3 * value, 5e-4) * 1.0001


def with_spread(row, label: str, rate: float, *corners: float):
    spread = Spread(predicted=rate, corners=dict(zip(Corner, corners, strict=True)))
    basis = "network: as the topology states, 10 Gbps, taken to be within 15%; computation: by hand, within 5%"
    return replace(row, label=label, prediction=replace(row.prediction, samples_per_s=rate, spread=spread, basis=basis))


def test_how_sure_a_row_is(make_row):
    """Of "sends" the order with "computes" is reversed at a corner, of "other" with none."""
    text = printed(
        with_spread(make_row(), "computes", 1000.0, 800.0, 1250.0, 800.0, 1250.0),
        with_spread(make_row(), "sends", 900.0, 720.0, 1120.0, 1080.0, 750.0),
        with_spread(make_row(), "other", 10.0, 8.0, 12.5, 8.0, 12.5),
    )
    lines = text.splitlines()
    assert lines[3:9] == [
        "strategy  iteration  samples/s  low high  speed-up  exposed  bound",
        "                 ms               %    %                 ms     ms",
        "computes       7.60    1,000.0  -20  +25     1.00x     4.00   4.00",
        "    bottleneck: node-0 transmit side (worker, 1 more like it), 53% busy",
        "    tied with sends",
        "sends          7.60      900.0  -20  +24     0.90x     4.00   4.00",
    ]
    assert lines[lines.index("costs: roofline V100, by hand") + 1 :][:2] == [
        "network: as the topology states, 10 Gbps, taken to be within 15%; computation:",
        "  by hand, within 5%",
    ]
    assert text.count("tied with") == 2
    assert "tied: some such costs" in text.replace("\n", " ")
    assert max(map(len, lines)) <= 80


def test_a_row_that_was_not_simulated_again_has_no_range(make_row):
    text = printed(with_spread(make_row(), "a", 100.0, 80.0, 125.0, 80.0, 125.0), make_row(label="b"))
    assert next(line for line in text.splitlines() if line.startswith("b ")).split()[3:5] == ["-", "-"]
