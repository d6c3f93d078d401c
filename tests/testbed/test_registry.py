"""A record names what is removed, so it is believed only where nobody else could have written it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stanza_sim.base.errors import InputError
from stanza_sim.testbed.registry import Record, Registry


def record(prefix: str = "stz-0a", **changes: object) -> str:
    known = {
        "name": "star", "uid": os.getuid(), "prefix": prefix, "source": "star", "digest": "d", "boot": "b",
        "owner": None, "kept": False, "complete": True, "namespaces": {f"{prefix}-n0": None}, "hosts": [],
        "trunks": [], "notes": [],
    }  # fmt: skip
    return json.dumps({**known, **changes})


def test_a_record_is_read(tmp_path: Path) -> None:
    (tmp_path / "stz-0a.json").write_text(record())
    found = Registry(folder=tmp_path).get("stz-0a")
    assert isinstance(found, Record)
    assert found.namespaces == {"stz-0a-n0": None}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (record(namespaces={"../../x": None}), r"\.\./\.\./x is not a name of its namespaces"),
        (record(namespaces={"stz-0a-/../../etc": None}), "is not a name of its namespaces"),
        (record(namespaces={"stz-0b-n0": None}), "is not a name of its namespaces"),
        (record(namespaces={"docker0": None}), "is not a name of its namespaces"),
        (record(prefix="stz-0b", namespaces={}), "is the record of stz-0b"),
    ],
)
def test_a_record_that_names_what_is_not_its_own_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "stz-0a.json").write_text(text)
    for read in (Registry(folder=tmp_path).records, lambda: Registry(folder=tmp_path).get("stz-0a")):
        with pytest.raises(InputError, match=says):
            read()


def test_the_folder_is_this_users_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        registry = Registry(folder=tmp_path / "run")
        with registry.lock():
            pass
    finally:
        os.umask(before)
    assert registry.folder.stat().st_mode & 0o777 == 0o755
    registry.folder.chmod(0o777)
    with registry.lock():
        pass
    assert registry.folder.stat().st_mode & 0o777 == 0o755
    (tmp_path / "link").symlink_to(registry.folder)
    with pytest.raises(InputError, match="not a folder of this user's"), Registry(folder=tmp_path / "link").lock():
        pass
