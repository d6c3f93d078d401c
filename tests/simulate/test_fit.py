"""The fit of GPU constants: device files equal a fresh one, it finds known constants, and unseen models are near."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from stanza_sim.base.config import find
from stanza_sim.base.errors import InputError
from stanza_sim.cluster.device import load_device
from stanza_sim.simulate.fit.__main__ import shipped_devices
from stanza_sim.simulate.fit.rows import SINGLE, TIMINGS, family_of, read_rows, works_of
from stanza_sim.simulate.fit.solve import Group, Problem, Step, groups_of
from stanza_sim.simulate.fit.write import MARKER, Fitted, fit_all, refit
from stanza_sim.simulate.sum_costs import Launch, module_step_s

GPUS = ("V100", "K80", "P100", "A100", "H100", "RTX3090")


@cache
def fitted() -> Fitted:
    return fit_all(read_rows(), list(shipped_devices().values()))


@pytest.mark.parametrize("name", GPUS)
def test_shipped_device_files_equal_a_fresh_fit(name: str) -> None:
    text = find("devices", name).read_text(encoding="utf-8")
    fresh = refit(text, load_device(name), fitted())
    stated, now = (part.partition(MARKER)[2] for part in (text, fresh))
    assert now == stated


def test_every_row_is_fitted_or_compared() -> None:
    rows = read_rows()
    known = [step.row for step in (*fitted().steps, *fitted().others)]
    assert len(known) == len(rows) == 78
    left_out = [(row.gpu, row.samples_per_s) for row in (step.row for step in fitted().others)]
    assert left_out == [("V100 SXM2 32GB", 3861.0), ("A100 80GB SXM4", 1066.0)]


def test_what_the_fit_predicts_is_what_costs_say() -> None:
    """Both to the four digits of the device files."""
    works = works_of(read_rows())
    predicted = fitted().problem.predict(fitted().x, fitted().steps)
    for step, seconds in zip(fitted().steps, predicted, strict=True):
        row, group = step.row, step.group
        said = module_step_s(
            load_device(group.device),
            works[row.key],
            group.precision,
            row.batch,
            launch=row.launch,
            update=row.with_update,
        )
        assert said == pytest.approx(seconds, rel=1e-3)


def test_models_left_out_are_within_the_bounds() -> None:
    """The bounds of the project: alone 12 and 30% of samples/s; with all of their family 15 and 35%."""
    for group in (Group("A100", "tf32"), Group("RTX3090", "fp16")):
        residuals = fitted().left_out.residuals(group)
        assert residuals is not None
        assert residuals.models >= 19
        assert residuals.median <= 0.12
        assert residuals.p90 <= 0.30
        assert residuals.family_median <= 0.15
        assert residuals.family_p90 <= 0.35


def test_a_model_left_out_is_not_in_its_fit() -> None:
    steps = fitted().steps
    problem, name = fitted().problem, "resnet18"
    changed = [_timed(step, step.row.step_s * 10) if step.row.model == name else step for step in steps]
    kept = [step for step in changed if step.row.model != name]
    ratio = problem.predict(problem.solve(kept), [s for s in steps if s.row.model == name])
    ours = [i for i, step in enumerate(steps) if step.row.model == name]
    measured = [steps[i].row.step_s for i in ours]
    assert fitted().left_out.by_model[ours] == pytest.approx(ratio / measured, rel=1e-4)


def test_the_fit_finds_known_constants() -> None:
    steps = fitted().steps
    problem = Problem(groups=groups_of(steps))
    truth = problem.first() + np.random.default_rng(1).normal(size=len(problem.first())) * problem.spread() * 0.3
    seconds = problem.predict(truth, steps)
    made = [_timed(step, s) for step, s in zip(steps, seconds, strict=True)]
    found = problem.predict(problem.solve(made), steps)
    assert np.abs(found / seconds - 1).max() < 0.08
    assert np.median(np.abs(found / seconds - 1)) < 0.02


def test_the_slopes_of_predictions_are_right() -> None:
    from stanza_sim.simulate.fit.solve import _Table

    problem, x = fitted().problem, fitted().x
    table = _Table.of(fitted().steps, problem)
    seconds, slopes = problem._with_slopes(x, table)
    for i in range(len(x)):
        moved = x.copy()
        moved[i] += 1e-6
        change = (np.log(problem._predict(moved, table)) - np.log(seconds)) / 1e-6
        assert change == pytest.approx(slopes[:, i], abs=1e-4)


def _timed(step: Step, seconds: float) -> Step:
    return replace(step, row=replace(step.row, samples_per_s=step.row.batch / seconds))


def test_factors_are_minima_of_their_rows() -> None:
    for group in fitted().problem.groups:
        for name, factor in fitted().factors(group).items():
            used = [timing for timing in factor.timings if timing.fitted]
            assert used, name
            if len(used) == 1:
                assert used[0].ratio == pytest.approx(1, abs=2e-3)
            assert min(t.ratio for t in used) <= 1.001
            assert max(t.ratio for t in used) >= 0.999


def test_rows_know_how_their_steps_were_run() -> None:
    rows = {(row.gpu, row.model, row.batch): row for row in read_rows()}
    a100 = rows["A100-SXM4-40GB", "resnet18", 12]
    assert (a100.launch, a100.with_update, a100.precision) == (Launch.EAGER, False, "fp32 setting (TF32 likely)")
    amp = rows["RTX 3090", "resnet18", 512]
    assert (amp.launch, amp.with_update, amp.precision) == (Launch.EAGER, True, "AMP fp16, NCHW")
    mxnet = rows["V100 (EC2 p3.2xlarge)", "resnet50", 64]
    assert (mxnet.launch, mxnet.with_update) == (Launch.GRAPHS, True)
    assert family_of("wide_resnet50_2") == family_of("seresnet50") == "residual"
    assert family_of("vgg11_bn") == "vgg"


def test_wrong_rows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("gpu,precision,model,batch,images_per_s,kind,source\nV100,fp32,vgg16,,100,train,nowhere\n")
    with pytest.raises(InputError, match=r"rows\.csv:2: a row without a batch"):
        read_rows(path, None)
    unknown = replace(read_rows(TIMINGS, SINGLE)[-1], model="nobody")
    with pytest.raises(InputError, match=r"single_work\.json has no .*nobody"):
        works_of((unknown,))
    with pytest.raises(InputError, match="no line that says where the fitted part begins"):
        refit("name: K80\n", load_device("K80"), fitted())
