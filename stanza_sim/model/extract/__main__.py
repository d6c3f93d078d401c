"""`python -m stanza_sim.model.extract --write-zoo` extracts the shipped tables afresh."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from stanza_sim.base.errors import StanzaError
from stanza_sim.model import shipped
from stanza_sim.model.extract import extract
from stanza_sim.model.profile import ModelProfile
from stanza_sim.model.profile_json import to_json


def fresh(name: str) -> ModelProfile:
    """Extract the shipped model `name` from its factory."""
    source = shipped.WIDE[name] if name in shipped.WIDE else shipped.SOURCES[name]
    return extract(source.factory, name=name, input_shape=source.input_shape, factory_kwargs=source.factory_kwargs)


def main(arguments: list[str] | None = None) -> int:
    """Write the tables; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m stanza_sim.model.extract", description=__doc__)
    parser.add_argument("--write-zoo", action="store_true", required=True, help="write one JSON file per shipped model")
    parser.add_argument("--to", type=Path, default=shipped.DATA, help="folder to write to (the package's own)")
    folder: Path = parser.parse_args(arguments).to
    try:
        tables = {name: to_json(fresh(name)) for name in (*shipped.names(), *shipped.WIDE)}
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in tables.items():
            folder.joinpath(f"{name}.json").write_text(text, encoding="utf-8")
    except StanzaError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status
    except OSError as error:
        sys.stderr.write(f"cannot write to {folder}: {error.strerror}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
