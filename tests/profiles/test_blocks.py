"""Profile files: what is written reads back, and a file that is wrong or from elsewhere is named as such."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stanza_sim.base.errors import InputError
from stanza_sim.cluster import Loopback, load_cluster
from stanza_sim.cluster.hardware import LinkKind, Staging
from stanza_sim.model import zoo
from stanza_sim.model.profile import with_boundary
from stanza_sim.model.profile_json import fingerprint
from stanza_sim.profiles.blocks import (
    BlockTime,
    LoopbackTimes,
    Profile,
    ProfiledModel,
    differences,
    mismatches,
    read_profile,
    require,
    with_profile,
    write_profile,
)

MODEL = zoo.get("alexnet")


def _profile(forward_s: float = 1e-3) -> Profile:
    return Profile(
        device="cpu Some Processor",
        driver=None,
        host_cores=2,
        versions={"torch": "2.13.0", "python": "3.11.7"},
        date="2026-01-01T00:00:00Z",
        precision="fp32",
        ranks_at_once=4,
        model=ProfiledModel(name="alexnet", fingerprint=fingerprint(MODEL)),
        blocks=tuple(
            BlockTime(
                block=b.name,
                samples=32,
                forward_s=forward_s,
                backward_s=2e-3,
                backward_input_s=1e-3,
                backward_weight_s=1e-3,
            )
            for b in MODEL.blocks
        ),
        reduce_Bps=1e9,
        update_Bps=2e9,
        op_overhead_s=1e-5,
        wakeup_s=2e-3,
        loopback=LoopbackTimes(latency_s=1e-5, message_core_s=2e-5, byte_core_s=1e-9, bandwidth_Bps=3e9),
    )


@given(st.floats(0, 1e6, allow_nan=False))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, forward_s: float) -> None:
    path = tmp_path_factory.mktemp("p") / "profile.json"
    profile = _profile(forward_s)
    write_profile(profile, path)
    assert read_profile(path) == profile
    assert json.loads(path.read_text())["format"] == "stanza-sim-profile/1"
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]


def test_equal_profiles_give_equal_bytes_and_replace_the_old_file(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    b.write_text("old")
    write_profile(_profile(), a)
    write_profile(_profile(), b)
    assert a.read_bytes() == b.read_bytes()


def test_an_unwritable_place_is_an_input_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_profile(_profile(), tmp_path / "missing" / "p.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_profile(_profile(), tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("stanza-sim-profile/1", "stanza-sim-profile/9", "should be 'stanza-sim-profile/1'"),
        ('"reduce_Bps": 1000000000.0', '"reduce_Bps": 0', "reduce_Bps"),
        ('"reduce_Bps": 1000000000.0', '"reduce_Bps": "1"', "reduce_Bps: is a text"),
        ('"reduce_Bps": 1000000000.0', '"reduce_Bps": NaN', "not JSON"),
        ('"reduce_Bps": 1000000000.0', '"reduce": 1', "unknown key"),
        ('"forward_s": 0.001', '"forward_s": -1', "blocks.0.forward_s"),
        ('"samples": 32', '"samples": 0', "blocks.0.samples"),
        ('"wakeup_s": 0.002', '"wakeup_s": -1', "wakeup_s"),
        ('"wakeup_s": 0.002', '"wakeup_s": "2ms"', "wakeup_s"),
        ('"block": "features.3"', '"block": "features.0"', "given twice"),
        ("}\n", "", "not JSON"),
    ],
)
def test_wrong_files(tmp_path: Path, old: str, new: str, says: str) -> None:
    path = tmp_path / "p.json"
    write_profile(_profile(), path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1) if old != "}\n" else text[:-20])
    with pytest.raises(InputError) as caught:
        read_profile(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@given(st.binary(max_size=40))
def test_random_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("p") / "p.json"
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"p\.json"):
        read_profile(path)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_profile(tmp_path / "p.json")


def test_which_models_a_profile_serves() -> None:
    profile = _profile()
    assert differences(profile, MODEL, "fp32") == []
    assert differences(profile, with_boundary(MODEL, 3), "fp32") == []
    require(profile, MODEL, "fp32")
    assert "not for vgg16" in differences(profile, zoo.get("vgg16"), "fp32")[0]
    with pytest.raises(InputError, match=r"p\.json: the profile does not fit: .*not at tf32"):
        require(profile, MODEL, "tf32", where="p.json")


def test_mismatches_name_what_differs() -> None:
    profile = _profile()
    same = {"device": profile.device, "host_cores": 2, "ranks_at_once": 4, "versions": profile.versions}
    assert mismatches(profile, **same) == []  # type: ignore[arg-type]
    assert mismatches(profile) == []
    found = mismatches(profile, device="cpu Other", host_cores=8, versions={"torch": "2.14.0", "new": "1"})
    assert len(found) == 3
    assert "device cpu Some Processor, here it is cpu Other" in found[0]
    assert "cores 2, here it is 8" in found[1]
    assert "torch 2.13.0, here it is 2.14.0" in found[2]


def test_the_loopback_of_a_profile_replaces_that_of_the_hosts() -> None:
    laptop = load_cluster("laptop")
    measured = Loopback(latency_s=1e-5, message_core_s=2e-5, byte_core_s=1e-9, bandwidth_Bps=3e9)
    assert with_profile(laptop, _profile()).hosts[0].loopback == measured
    assert with_profile(laptop, _profile().model_copy(update={"loopback": None, "wakeup_s": None})) == laptop


DEVICES = {
    "staging": {
        "out": {"latency_s": 1e-5, "bandwidth_Bps": 2e10},
        "back": {"latency_s": 2e-5, "bandwidth_Bps": 1e10},
    },
    "device_link": {"latency_s": 8e-6, "bandwidth_Bps": 4e10},
    "collective_share": 0.2,
    "provenance": {"CUDA": "13.0", "uuid": "a", "SM clock": "1980 MHz now"},
}


def on_devices() -> Profile:
    return Profile.model_validate(_profile().model_copy(update={"loopback": None}).model_dump() | DEVICES)


def test_what_was_measured_of_devices_reads_back_and_is_left_out_where_there_is_none(tmp_path: Path) -> None:
    write_profile(on_devices(), tmp_path / "gpu.json")
    assert read_profile(tmp_path / "gpu.json") == on_devices()
    write_profile(_profile(), tmp_path / "cpu.json")
    assert not set(DEVICES) & set(json.loads((tmp_path / "cpu.json").read_text()))


def test_copies_are_those_of_hosts_that_stage() -> None:
    before = load_cluster("multi-gpu")
    assert with_profile(before, on_devices()).hosts[0].staging is None
    stages = (replace(host, staging=Staging(bandwidth_Bps=1e9)) for host in before.hosts)
    before = replace(before, hosts=tuple(stages))
    after = with_profile(before, on_devices())
    staging = after.hosts[0].staging
    assert staging is not None
    assert (staging.way("out"), staging.way("in")) == ((2e10, 1e-5), (1e10, 2e-5))
    assert staging.slower(2).way("in") == (5e9, 4e-5)
    assert after.hosts[0].loopback == before.hosts[0].loopback
    assert after.hosts[0].losses.collective_share == 0.2
    assert with_profile(load_cluster("laptop"), on_devices()).hosts[0].losses.collective_share == 0.0


def test_a_link_between_devices_is_that_of_hosts_that_have_links() -> None:
    before = load_cluster("dgx-1-v100", nodes=2)
    after = with_profile(before, on_devices())
    intra = after.hosts[0].intra
    assert intra is not None
    assert (intra.bandwidth_Bps, intra.efficiency, intra.latency_s) == (4e10, 1.0, 4e-6)
    changed = [link for was, link in zip(before.links, after.links, strict=True) if was != link]
    assert {link.kind for link in changed} == {LinkKind.DEVICE_OUT, LinkKind.DEVICE_IN}
    assert {(link.bandwidth_Bps, link.latency_s) for link in changed} == {(4e10, 4e-6)}


def test_another_gpu_is_warned_about_and_other_clocks_are_not() -> None:
    here = {"CUDA": "13.1", "uuid": "b", "SM clock": "1200 MHz now", "driver": "580"}
    found = mismatches(on_devices(), provenance=here)
    assert [line.partition("with ")[2] for line in found] == ["CUDA 13.0, here it is 13.1", "uuid a, here it is b"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("collective_share", 1.0),
        ("collective_share", -0.1),
        ("device_link", {"latency_s": -1e-6, "bandwidth_Bps": 1e9}),
        (
            "staging",
            {"out": {"latency_s": 0.0, "bandwidth_Bps": 0.0}, "back": {"latency_s": 0.0, "bandwidth_Bps": 1e9}},
        ),
        ("staging", {"out": {"latency_s": 0.0, "bandwidth_Bps": 1e9}}),
        ("provenance", {"CUDA": 13}),
    ],
)
def test_wrong_measurements_of_devices_are_refused(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(json.dumps(on_devices().model_dump() | {key: value}))
    with pytest.raises(InputError, match=key):
        read_profile(path)
