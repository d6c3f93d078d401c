"""The project as it is installed: data files by name from a wheel, and versions that are written down."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from stanza_sim.base import config

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel puts into site-packages."""
    site = tmp_path_factory.mktemp("site")
    wheel = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    ignored = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=ignored)
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / target, ignore=ignored)
    return site


@pytest.mark.processes
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["show", "cluster"], config.available("topologies")),
        (["show", "device"], config.available("devices")),
        (["show", "cluster", "ec2-p3-10"], ["node-9"]),
        (["run", "ec2_v100", "--set", "models=[alexnet]"], ["alexnet,", "ec2-p3-10,"]),
        (["validate", "--dry-run", "--only", "star-2-500"], ["star-2-500/vgg16-big/ring"]),
    ],
)
def test_names_are_found_from_an_installed_wheel(installed, tmp_path, command, expected):
    done = subprocess.run(
        [sys.executable, "-m", "stanza_sim", *command],
        env=os.environ | {"PYTHONPATH": str(installed)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert set(expected) <= set(done.stdout.split())


def requirements() -> list[Requirement]:
    extras = PROJECT["project"]["optional-dependencies"].values()
    texts = [*PROJECT["project"]["dependencies"], *(text for extra in extras for text in extra)]
    return [r for r in map(Requirement, texts) if canonicalize_name(r.name) != "stanza-sim"]


def constraints() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line) for line in lines]
    assert None not in pins, "every line is NAME==VERSION, without URL or local version"
    return {canonicalize_name(pin[1]): pin[2] for pin in pins}


def test_every_requirement_has_a_tested_version_within_its_bounds():
    pins = constraints()
    for requirement in requirements():
        assert requirement.specifier, f"{requirement.name} has no lower bound"
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)])


def test_the_readme_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert "pip install -c constraints.txt -e '.[torch]' && stanza-sim run laptop --execute\n" in text
    assert "pip install -c constraints.txt -e '.[dev]' && pytest\n" in text
    assert "torch" in " ".join(PROJECT["project"]["optional-dependencies"]["dev"])


def test_links_in_the_documents_lead_somewhere():
    for document in ROOT.glob("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (ROOT / target).exists(), f"{document.name}: {target}"
