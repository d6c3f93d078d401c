"""Deterministic mode: torch's switches are set while it lasts, and what has no such form is said."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
import torch
from torch import nn

from stanza_sim.base.errors import InputError, RunError
from stanza_sim.execute.rank.deterministic import deterministically
from stanza_sim.execute.start.environment import for_gpus
from stanza_sim.execute.start.launch import Pool
from stanza_sim.experiment.file import Execute
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile
from tests.execute.execute_variants import job_of, run, schedule_of


def switches() -> tuple[object, ...]:
    cudnn, memory = torch.backends.cudnn, torch.utils.deterministic
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        cudnn.deterministic,
        cudnn.benchmark,
        memory.fill_uninitialized_memory,
    )


def test_switches_are_set_within_and_restored() -> None:
    before = switches()
    with deterministically(True):
        assert switches() == (True, False, True, False, False)
    assert switches() == before
    with deterministically(False):
        assert switches() == before


def test_an_operation_without_a_deterministic_form_is_named() -> None:
    before = switches()
    named = pytest.raises(RunError, match="deterministic: true, an operation cannot be carried out: put_")
    with named, deterministically(True):
        torch.zeros(4).put_(torch.tensor([1]), torch.tensor([2.0]))
    assert switches() == before
    with pytest.raises(RuntimeError, match="shapes"), deterministically(True):
        torch.mm(torch.zeros(2, 3), torch.zeros(2, 3))


class Puts(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone().put_(torch.tensor([0]), torch.tensor([1.0]))


def model_that_puts() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), Puts(), nn.Linear(16, 10))


@pytest.mark.processes
def test_a_deterministic_run_repeats_and_says_what_it_cannot_do(tiny: ModelProfile) -> None:
    with Pool(2, timeout_s=20, deterministic=True) as pool:
        job = job_of(tiny, schedule_of(tiny, "all_reduce", 2, {}), deterministic=True)
        first, second, other = (run(pool, j).parameters for j in (job, job, replace(job, deterministic=False)))
        assert first is not None and second is not None and other is not None
        assert all((first[name] == second[name]).all() and (first[name] == other[name]).all() for name in first)
        model = extract("tests.execute.rank.test_deterministic:model_that_puts", name="puts", input_shape=(1, 8, 8))
        job = job_of(model, schedule_of(model, "all_reduce", 2, {}), deterministic=True)
        with pytest.raises(RunError, match="put_ does not have a deterministic implementation"):
            run(pool, job)


def test_what_gpus_need_is_set_unless_it_is() -> None:
    assert for_gpus({}) == {"CUDA_MODULE_LOADING": "EAGER", "CUDA_DEVICE_MAX_CONNECTIONS": "32"}
    user = {"CUDA_MODULE_LOADING": "LAZY", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}
    assert for_gpus(user, deterministic=True) == {"CUDA_DEVICE_MAX_CONNECTIONS": "32"}
    assert for_gpus({}, deterministic=True)["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_ranks_on_gpus_get_it_before_they_start(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[dict[str, str]] = []

    class Started(Exception):
        pass

    def popen(command: list[str], *, env: dict[str, str], **how: object) -> None:
        started.append(env)
        raise Started

    monkeypatch.delenv("CUDA_MODULE_LOADING", raising=False)
    for kind in ("cuda", "cpu"):
        with monkeypatch.context() as patched, pytest.raises(Started):
            patched.setattr(subprocess, "Popen", popen)
            Pool(1, kind=kind, deterministic=True).start()
    assert [env.get("CUBLAS_WORKSPACE_CONFIG") for env in started] == [":4096:8", None]
    assert [env.get("CUDA_MODULE_LOADING") for env in started] == ["EAGER", None]


@pytest.mark.parametrize("wrong", [{"deterministic": "yes"}, {"deterministic": True, "compute": "emulated"}])
def test_a_wrong_deterministic_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises((ValueError, InputError)):
        Execute.model_validate(wrong)
