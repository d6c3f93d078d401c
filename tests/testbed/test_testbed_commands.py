"""`stanza-sim testbed`, and what it says where something is missing."""

import json
import os
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from stanza_sim.base.errors import InputError
from stanza_sim.cli.app import app
from stanza_sim.testbed import Testbed, registry
from stanza_sim.testbed.network import network_of
from stanza_sim.testbed.plan import make_plan, prefix_of
from stanza_sim.testbed.probe import missing, require_kernel
from stanza_sim.testbed.processes import Process, this_process
from stanza_sim.testbed.registry import Record, Registry, this_boot
from stanza_sim.testbed.shell import Tools, find_program
from tests.testbed.testbed_clusters import leaf_spine_text, load, star_text, written


def call(*args: object):
    return CliRunner().invoke(app, ["testbed", *map(str, args)], env={"COLUMNS": "120", "RANK": None})


def refused(*args: object) -> str:
    result = call(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("error: ")
    return result.stderr


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch) -> Path:
    """Records of these tests only: nobody's testbed is taken down by `down --all`."""
    monkeypatch.setattr(registry, "FOLDER", tmp_path / "records")
    return tmp_path / "records"


@pytest.fixture
def star(tmp_path) -> Path:
    return written(tmp_path, star_text(f"test-{uuid4().hex[:8]}"))


@pytest.fixture
def as_root(monkeypatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)


@pytest.mark.root
@pytest.mark.xdist_group("testbed")
def test_up_status_and_down(star):
    name = star.read_text().split()[1]
    assert call("status").stdout == "there is no testbed\n"
    assert call("status", star).exit_code == 1
    for said in ("(built)", "was up already"):
        up = call("up", star)
        assert (up.exit_code, up.stderr) == (0, "")
        assert f"{name} " in up.stdout
        assert said in up.stdout
        assert "10.77.0.3   200 Mbps   200 Mbps" in up.stdout
        assert f"ip netns exec {prefix_of(name, os.getuid())}-h0 COMMAND" in up.stdout
    assert "(rebuilt)" in call("up", star, "--nodes", 2, "--rate", "100Mbps").stdout
    star.unlink()  # what is up can be looked at and taken down without its file
    for meant in (star, name):
        status = call("status", meant)
        assert status.exit_code == 0
        assert f"{name} is up" in status.stdout
        assert "100 Mbps" in status.stdout
    (shown,) = json.loads(call("status", "--json").stdout)
    assert (shown["name"], shown["intact"], shown["processes"], len(shown["hosts"])) == (name, True, [], 2)
    down = call("down", star)
    assert (down.exit_code, down.stderr) == (0, f"{name} is down\n")
    assert "is not up" in call("status", "star").stdout
    assert call("down", "--all").stderr == "there is no testbed\n"


@pytest.mark.root
@pytest.mark.xdist_group("testbed")
def test_links_between_switches_and_notes_are_shown(tmp_path):
    path = written(tmp_path, leaf_spine_text(f"test-{uuid4().hex[:8]}", spines=2, routing="spread"))
    assert call("up", path).exit_code == 0
    shown = call("status", path).stdout
    assert "link leaf-0 to spine-0 and 1 more: 200 Mbps" in shown
    assert "note: spreading over 2 spines is emulated as one" in shown
    assert call("down", "--all").exit_code == 0


def test_what_to_take_down_is_said_once(star):
    assert "name a topology, or write --all" in refused("down")
    assert "name a topology, or write --all" in refused("down", star, "--all")


def test_bad_input_is_answered_before_anything_is_done(star, tmp_path):
    assert "unknown topology 'nope'" in refused("up", "nope")
    assert "unknown topology 'nope'" in refused("status", "nope")
    assert "'fast' is not a rate" in refused("up", star, "--rate", "fast")
    assert "10 Gbps is more than a port can be given here" in refused("up", "star")
    assert "cables between hosts" in refused("up", "ring")
    assert "a single host cannot be emulated" in refused("up", "laptop")


# --- what is missing -------------------------------------------------------------------------------------------------


def test_without_root_it_says_so(star, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in (("up", star), ("down", "--all")):
        assert refused(*command) == (
            "error: testbed: a testbed needs root, to make network namespaces\n  run it with sudo\n"
        )


def test_on_another_system_it_says_so(star, monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    for command in (("up", star), ("status",), ("down", "--all")):
        assert refused(*command) == "error: testbed: a testbed needs Linux, this is darwin\n"


@pytest.mark.parametrize(("there", "lacks"), [((), "ip and tc"), (("ip",), "tc")])
def test_without_iproute2_it_says_what_to_install(star, monkeypatch, as_root, there, lacks):
    found = lambda name: f"/sbin/{name}" if name in there else None  # noqa: E731
    monkeypatch.setattr("stanza_sim.testbed.shell.find_program", found)
    assert refused("up", star) == (
        f"error: testbed: a testbed needs iproute2: {lacks} not found\n"
        "  install it with your package manager, such as apt install iproute2\n"
    )


def test_a_folder_for_records_that_cannot_be_made_is_named(star, as_root, own_folder):
    own_folder.write_text("")
    assert f"error: {own_folder}: cannot be written: " in refused("up", star)


@pytest.mark.root
@pytest.mark.xdist_group("testbed")
@pytest.mark.parametrize(
    ("tool", "pattern", "said"),
    [
        ("tc", "*htb*", "this machine cannot run a testbed: htb: Error: Specified qdisc kind is unknown."),
        ("ip", "*veth*", "this machine cannot run a testbed: veth pairs: Error: Specified qdisc kind is unknown."),
        ("tc", "*u32*", "u32 filters: Error: "),
    ],
)
def test_a_kernel_without_a_feature_is_told_by_its_name_and_nothing_is_left(
    star, tmp_path, monkeypatch, own_folder, tool, pattern, said
):
    """The tool that fails stands in for the kernel: what is asked for in batches, and in the scratch namespace."""
    real = find_program(tool)
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / tool).write_text(
        "#!/bin/sh\n"
        'fails() { echo "Error: Specified qdisc kind is unknown." >&2; echo "Command failed -:1" >&2; exit 2; }\n'
        f'case "$*" in {pattern}) fails;; esac\n'
        'case "$*" in *-batch*)\n'
        "    lines=$(cat)\n"
        f'    case "$lines" in {pattern}) fails;; esac\n'
        f'    printf "%s\\n" "$lines" | {real} "$@"; exit;;\n'
        "esac\n"
        f'exec {real} "$@"\n'
    )
    (folder / tool).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    before = sorted(os.listdir("/run/netns")) if Path("/run/netns").exists() else []
    assert said in refused("up", star)
    assert [p.name for p in own_folder.iterdir()] == ["lock"]
    prefix = prefix_of(star.read_text().split()[1], os.getuid())
    assert not [n for n in set(os.listdir("/run/netns")) - set(before) if n.startswith(prefix)]


@pytest.mark.root
@pytest.mark.xdist_group("testbed")
def test_a_disk_that_fills_up_while_it_is_built_leaves_nothing(star, monkeypatch, own_folder):
    put, puts = Registry.put, []

    def put_once(self: Registry, record: Record) -> None:
        puts.append(record)
        if len(puts) > 1:
            raise InputError("cannot be written: No space left on device", where="disk")
        put(self, record)

    monkeypatch.setattr(Registry, "put", put_once)
    assert "No space left" in refused("up", star)
    assert puts[1].complete
    assert [p.name for p in own_folder.iterdir()] == ["lock"]
    assert not [name for name in os.listdir("/run/netns") if name.startswith(puts[0].prefix)]


@pytest.mark.root
@pytest.mark.xdist_group("testbed")
def test_a_kernel_that_has_all_lacks_nothing():
    tools = Tools(ip=find_program("ip") or "", tc=find_program("tc") or "")
    assert missing(tools) == []
    require_kernel(tools)


# --- records ---------------------------------------------------------------------------------------------------------


def record(**changes: object) -> Record:
    made = Record(
        name="a",
        uid=0,
        prefix="stz-00000000",
        source="a",
        digest="d",
        boot=this_boot(),
        owner=this_process(),
        kept=False,
        complete=False,
        namespaces={"stz-00000000-h0": None, "stz-00000000-h1": (4, 7)},
        hosts=(),
        trunks=(),
        notes=("n",),
    )
    return replace(made, **changes)


def test_a_record_is_read_as_it_was_written():
    for one in (record(), record(owner=None, complete=True)):
        Registry().folder.mkdir(exist_ok=True)
        Registry().put(one)
        assert Registry().get(one.prefix) == one
        assert Registry().records() == [one]
    Registry().forget(one.prefix)
    assert Registry().records() == []


def test_a_record_whose_process_is_gone_or_of_before_a_restart_is_abandoned():
    assert not record().abandoned()
    assert not record(owner=None).abandoned()
    assert record(boot="another").abandoned()
    assert record(owner=Process(pid=os.getpid(), started=1)).abandoned()
    assert record(owner=Process(pid=2**30, started=1)).abandoned()


def test_a_file_that_is_no_record_is_named(own_folder):
    own_folder.mkdir()
    (own_folder / "stz-00000000.json").write_text("{")
    said = refused("status")
    assert f"{own_folder}/stz-00000000.json: is no record of a testbed" in said
    assert "remove it, and the namespaces that `ip netns list` shows as stz-00000000-" in said


def test_status_of_what_was_left_behind(own_folder):
    own_folder.mkdir()
    Registry().put(record(owner=Process(pid=2**30, started=1)))
    assert "a is left behind by a process that is gone" in call("status").stdout
    Registry().put(record())
    assert f"a is being built by process {os.getpid()}" in call("status").stdout
    Registry().put(record(owner=None, complete=True, kept=True))
    assert "a is damaged: namespaces are missing" in call("status").stdout


def test_hosts_of_a_testbed_are_known_before_it_is_up(tmp_path, as_root):
    cluster = load(tmp_path, star_text())
    bed = Testbed(cluster)
    plan = make_plan(network_of(cluster), bed.prefix)
    assert bed.plan == plan
    assert [bed.namespace_of(h) for h in range(3)] == [f"{bed.prefix}-h{h}" for h in range(3)]
    assert [bed.address_of(h) for h in range(3)] == ["10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert bed.processes() == []
    if find_program("ip"):
        assert bed.exec_prefix(1)[1:] == ["netns", "exec", f"{bed.prefix}-h1"]
    with pytest.raises(InputError, match="a single host"):
        Testbed(load(tmp_path, star_text(hosts=1)))
