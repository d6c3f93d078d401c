"""Where topologies, experiments, devices, transports and the like lie, and what a misspelt name was meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from stanza_sim.base.errors import InputError

LONGEST = 100
"""Characters of a name that are compared with others; comparing takes the product of their lengths."""
_SUFFIXES = (".yaml", ".yml")
_PACKAGE = Path(__file__).parents[1]


class Kind(StrEnum):
    """What can be found by name; the value is the folder's name."""

    TOPOLOGIES = "topologies"
    EXPERIMENTS = "experiments"
    DEVICES = "devices"
    SUITES = "suites"
    NCCL = "nccl"
    TRANSPORTS = "transports"

    @property
    def noun(self) -> str:
        """The word for one of them."""
        match self:
            case Kind.TOPOLOGIES:
                return "topology"
            case Kind.SUITES:
                return "validation suite"
            case Kind.NCCL:
                return "NCCL platform"
            case _:
                return self.value.removesuffix("s")

    @property
    def with_article(self) -> str:
        """The word with its article."""
        return f"an {self.noun}" if self.noun[0] in "aeiouN" else f"a {self.noun}"


def _folders(kind: Kind) -> list[Path]:
    """Return where `kind` is looked for, nearest first: here, the source checkout, the package."""
    if kind in (Kind.DEVICES, Kind.NCCL, Kind.TRANSPORTS):
        return [Path(kind.value), _PACKAGE / "data" / kind.value]
    if kind is Kind.SUITES:  # they lie where their results are kept, among the experiments
        return [folder / "validation" for folder in _folders(Kind.EXPERIMENTS)]
    checkout = _PACKAGE.parent
    # Next to an installed package lies site-packages, where a folder `experiments` would be somebody else's.
    sources = [checkout / kind.value] if (checkout / "pyproject.toml").is_file() else []
    return [Path(kind.value), *sources, _PACKAGE / "_data" / kind.value]


def _named(folder: Path, kind: Kind, name: str) -> Path:
    """Return the file that holds `name` in `folder`."""
    return folder / name / "experiment.yaml" if kind is Kind.EXPERIMENTS else folder / f"{name}.yaml"


def available(kind: Kind | str) -> list[str]:
    """Return the sorted names that `find` knows of a kind, such as `topologies` or `devices` (see `Kind`)."""
    pattern = "*/experiment.yaml" if kind == Kind.EXPERIMENTS else "*.yaml"
    files = [path for folder in _folders(Kind(kind)) for path in folder.glob(pattern)]
    return sorted({path.parent.name if kind == Kind.EXPERIMENTS else path.stem for path in files})


def _is_file(path: Path, *, folder: bool = False) -> bool:
    """Return whether there is a file, or a folder, at `path`; there is none at one that is too long for a path."""
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:
        return False


def find(kind: Kind | str, name_or_path: str | Path, *, beside: Path | None = None) -> Path:
    """Return the file of a topology, an experiment, a device or whatever `kind` names.

    A text with a slash or ending in `.yaml` is a path (also tried relative to the folder of `beside`, the file that
    mentions it); a folder that holds an `experiment.yaml` is a path to that experiment. Anything else is a name,
    looked for in the current directory, the source checkout and the installed package, in this order.
    Raises `InputError`, with near names, where there is none.
    """
    kind = Kind(kind)
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(_SUFFIXES):
        bases = [beside.parent, Path()] if beside is not None else [Path()]
        for path in (base / text for base in bases):
            if kind is Kind.EXPERIMENTS and _is_file(path / "experiment.yaml"):
                return path / "experiment.yaml"
            if _is_file(path):
                return path
        what = "is a folder" if _is_file(Path(text), folder=True) else "no such file"
        raise InputError(
            what, where=text, hint=f"give {kind.with_article} file or one of: {', '.join(available(kind))}"
        )
    for folder in _folders(kind):
        if text and _is_file(path := _named(folder, kind, text)):
            return path
    raise InputError(f"unknown {kind.noun} {text!r}", hint=near(text, available(kind)))


def near(word: str, known: Iterable[str]) -> str:
    """Return a hint that names what `word` may have been meant to be, or else all that is known."""
    names, word = list(known), word[:LONGEST]
    by_case = {n.lower(): n for n in names}
    if close := difflib.get_close_matches(word.lower(), by_case, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(by_case[c] for c in close)}?"
    return f"known: {', '.join(names)}" if names else "there is none"
