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


_PARTS = (Kind.DEVICES, Kind.NCCL, Kind.TRANSPORTS)
"""What other files name: it may lie in a folder beside such a file."""


def _folders(kind: Kind, *beside: Path | None) -> list[Path]:
    """Return where `kind` is looked for, nearest first: beside files, here, the source checkout, the package."""
    if kind in _PARTS:
        near_files = [file.parent / kind.value for file in beside if file is not None]
        return list(dict.fromkeys([*near_files, Path(kind.value), _PACKAGE / "data" / kind.value]))
    if kind is Kind.SUITES:  # they lie where their results are kept, among the experiments
        return [folder / "validation" for folder in _folders(Kind.EXPERIMENTS)]
    checkout = _PACKAGE.parent
    # Next to an installed package lies site-packages, where a folder `experiments` would be somebody else's.
    sources = [checkout / kind.value] if (checkout / "pyproject.toml").is_file() else []
    return [Path(kind.value), *sources, _PACKAGE / "_data" / kind.value]


def _named(folder: Path, kind: Kind, name: str) -> Path:
    """Return the file that holds `name` in `folder`."""
    return folder / name / "experiment.yaml" if kind is Kind.EXPERIMENTS else folder / f"{name}.yaml"


def available(kind: Kind | str, *beside: Path | None) -> list[str]:
    """Return the sorted names that `find` knows of a kind, such as `topologies` or `devices` (see `Kind`)."""
    pattern = "*/experiment.yaml" if kind == Kind.EXPERIMENTS else "*.yaml"
    files = [path for folder in _folders(Kind(kind), *beside) for path in folder.glob(pattern)]
    return sorted({path.parent.name if kind == Kind.EXPERIMENTS else path.stem for path in files})


def _is_file(path: Path, *, folder: bool = False) -> bool:
    """Return whether there is a file, or a folder, at `path`; there is none at one that is too long for a path."""
    try:
        return path.is_dir() if folder else path.is_file()
    except OSError:
        return False


def find(
    kind: Kind | str, name_or_path: str | Path, *, beside: Path | None = None, experiment: Path | None = None
) -> Path:
    """Return the file of a topology, an experiment, a device or whatever `kind` names.

    A text with a slash or ending in `.yaml` is a path (also tried relative to the folder of `beside`, the file that
    mentions it); a folder that holds an `experiment.yaml` is a path to that experiment. Anything else is a name,
    looked for in the current directory, the source checkout and the installed package, in this order; a device, an
    NCCL platform and a transport before that in the folder of their kind beside `beside` and beside `experiment`.
    Raises `InputError`, with near names, where there is none.
    """
    kind = Kind(kind)
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or "/" in text or text.endswith(_SUFFIXES):
        bases = [*dict.fromkeys(file.parent for file in (beside, experiment) if file is not None), Path()]
        for path in (base / text for base in bases):
            if kind is Kind.EXPERIMENTS and _is_file(path / "experiment.yaml"):
                return path / "experiment.yaml"
            if _is_file(path):
                return path
        what = "is a folder" if _is_file(Path(text), folder=True) else "no such file"
        known = ", ".join(available(kind, beside, experiment))
        where = [] if len(bases) == 1 or Path(text).is_absolute() else [str(base / text) for base in bases]
        looked = f"; looked for {', '.join(dict.fromkeys(where))}" if where else ""
        raise InputError(what, where=text, hint=f"give {kind.with_article} file or one of: {known}{looked}")
    folders = _folders(kind, beside, experiment)
    for folder in folders:
        if text and _is_file(path := _named(folder, kind, text)):
            return path
    hint = near(text, available(kind, beside, experiment))
    if kind in _PARTS:
        places = ", ".join(f"{folder}/" for folder in folders[:-1])
        hint = f"{hint}; looked in {places} and among those shipped"
    raise InputError(f"unknown {kind.noun} {text!r}", hint=hint)


def is_named(kind: Kind | str, name: str, path: Path) -> bool:
    """Whether `name` alone, without a file beside which to look, leads to `path` from here."""
    found = next((p for folder in _folders(Kind(kind)) if _is_file(p := _named(folder, Kind(kind), name))), None)
    return found is not None and found.samefile(path)


def near(word: str, known: Iterable[str]) -> str:
    """Return a hint that names what `word` may have been meant to be, or else all that is known."""
    names, word = list(known), word[:LONGEST]
    by_case = {n.lower(): n for n in names}
    if close := difflib.get_close_matches(word.lower(), by_case, n=3, cutoff=0.5):
        return f"did you mean {' or '.join(by_case[c] for c in close)}?"
    return f"known: {', '.join(names)}" if names else "there is none"
