"""Launchers' environments: torchrun, Slurm, neither, and broken ones."""

from __future__ import annotations

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.execute.start.environment import Place, expand_nodes, place

TORCHRUN = {"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
SLURM = {
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_NODELIST": "gpu[03-04,9]",
    "SLURM_JOB_ID": "45001",
    "SLURM_STEP_ID": "0",
}


def test_no_launcher() -> None:
    assert place({"PATH": "/bin"}) is None


def test_torchrun() -> None:
    assert place(TORCHRUN) == Place(
        launcher="torchrun", rank=2, world_size=4, local_rank=0, address="10.0.0.1", port=29500
    )


def test_slurm_meets_on_the_first_node_at_a_port_of_the_job() -> None:
    assert place(SLURM) == Place(
        launcher="Slurm", rank=5, world_size=8, local_rank=1, address="gpu03", port=20_000 + 45001 % 20_000
    )
    found = place({**SLURM, "MASTER_ADDR": "head", "MASTER_PORT": "1234"})
    assert found is not None
    assert (found.address, found.port) == ("head", 1234)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("login", "login"),
        ("gpu[3,7-8]", "gpu3"),
        ("rack[1-2]n[01-02],other", "rack1n01"),
        ("10.0.0.[7-8]", "10.0.0.7"),
        ("b2,a[1-9]", "b2"),  # as Slurm orders them, not by name
    ],
)
def test_all_ranks_of_a_step_on_several_nodes_meet_at_one_place(nodes: str, first: str) -> None:
    found = [
        place({**SLURM, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r % 2), "SLURM_STEP_NODELIST": nodes})
        for r in range(8)
    ]
    assert [(p.rank, p.world_size, p.local_rank) for p in found if p] == [(r, 8, r % 2) for r in range(8)]
    # The step's nodes, of which the job has others as well.
    assert {(p.address, p.port) for p in found if p} == {(first, 20_000 + 45001 % 20_000)}


def test_ports_of_two_jobs_differ_and_are_not_privileged() -> None:
    ports = [p.port for n in range(45_000, 45_100) if (p := place({**SLURM, "SLURM_JOB_ID": str(n)}))]
    assert len(set(ports)) == 100
    assert min(ports) >= 20_000
    assert max(ports) < 40_000


def test_a_batch_script_or_a_single_task_is_no_launcher() -> None:
    assert place({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}) is None
    assert place({**SLURM, "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}) is None


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT is not set"),
        ({**TORCHRUN, "RANK": "two"}, "RANK=two"),
        ({**TORCHRUN, "RANK": "4"}, "rank 4 is not one of a world of 4"),
        ({k: v for k, v in SLURM.items() if k != "SLURM_JOB_NODELIST"}, "SLURM_JOB_NODELIST is not set"),
        ({**SLURM, "SLURM_LOCALID": "-1"}, "SLURM_LOCALID=-1"),
        ({**SLURM, "SLURM_PROCID": "8"}, "rank 8 is not one of a world of 8"),
        ({**SLURM, "SLURM_JOB_NODELIST": "gpu[03-04"}, "brackets that do not match"),
        ({**SLURM, "MASTER_PORT": "ssh"}, "MASTER_PORT=ssh"),
        ({**SLURM, "SLURM_JOB_ID": "17_4"}, "SLURM_JOB_ID=17_4"),
    ],
)
def test_half_an_environment_is_refused(environment: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        place(environment)


@pytest.mark.parametrize("without", ["no", "empty"])
@pytest.mark.parametrize(
    ("whole", "name"),
    [
        *((TORCHRUN, name) for name in TORCHRUN),
        *((SLURM, name) for name in ("SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_NODELIST")),
    ],
)
def test_a_variable_that_is_missing_is_named(whole: dict[str, str], name: str, without: str) -> None:
    half = {k: v for k, v in whole.items() if k != name} | ({name: ""} if without == "empty" else {})
    with pytest.raises(InputError, match=f"{name} is not set, though (torchrun|Slurm)") as caught:
        place(half)
    assert caught.value.where == "environment"
    assert "unset its other variables" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("login", ["login"]),
        ("node[01-03,7]", ["node01", "node02", "node03", "node7"]),
        ("a[1-2]b[8-10],c", ["a1b8", "a1b9", "a1b10", "a2b8", "a2b9", "a2b10", "c"]),
        ("n[098-101].cluster, x", ["n098.cluster", "n099.cluster", "n100.cluster", "n101.cluster", "x"]),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@pytest.mark.parametrize("text", ["", "n[1-", "n]1[", "n[3-1]", "n[a]", "n[1,,2]", "n[[1]]"])
def test_malformed_node_lists(text: str) -> None:
    with pytest.raises(InputError):
        expand_nodes(text)
