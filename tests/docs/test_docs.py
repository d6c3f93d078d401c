"""The documents say what is true: their examples run, their links lead somewhere, every printed column is explained.

A Python block with `>>>` is a doctest; the blocks of one document share their names. A block that begins with
`$ stanza-sim` is compared with what the command prints, where a line `...` stands for any lines.
"""

from __future__ import annotations

import ast
import csv
import doctest
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
CHEAP = ("show", "flows", "--version")
"""Commands whose output is compared here. `tests/cli/test_cli.py` compares that of `run ec2_v100`."""
MEASURING = '>>> here = ss.load_cluster("laptop")'
"""From here on a session starts ranks."""
MOST_LINES = {"README.md": 149, "ARCHITECTURE.md": 130}


def blocks(document: Path) -> Iterator[tuple[str, str]]:
    """The language and the text of each fenced block."""
    for match in FENCE.finditer(document.read_text()):
        yield match[1], match[2]


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


# ---- Python


def session_of(document: Path) -> str:
    return "\n".join(text for _, text in blocks(document) if ">>> " in text)


SESSIONS = [document for document in DOCUMENTS if session_of(document)]


def run_doctest(document: Path, text: str) -> None:
    examples = doctest.DocTestParser().get_doctest(text, {}, name_of(document), str(document), 0)
    told: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(examples, out=told.append)
    assert result.attempted
    assert not result.failed, "".join(told)


@pytest.mark.parametrize("document", SESSIONS, ids=name_of)
def test_python_that_predicts_runs(document: Path) -> None:
    """The session up to the first block that executes or searches: seconds, in this process."""
    run_doctest(document, session_of(document).partition(MEASURING)[0])


@pytest.mark.processes
@pytest.mark.parametrize("document", [d for d in SESSIONS if MEASURING in session_of(d)], ids=name_of)
def test_python_that_executes_runs(document: Path) -> None:
    pytest.importorskip("torch")
    run_doctest(document, session_of(document))


# ---- commands


def commands() -> Iterator[tuple[Path, str, str]]:
    for document in DOCUMENTS:
        for _, text in blocks(document):
            first, _, printed = text.partition("\n")
            if first.startswith("$ stanza-sim ") and (first.split()[2] in CHEAP or "--explain" in first):
                yield document, first.removeprefix("$ stanza-sim "), printed


@pytest.mark.processes
@pytest.mark.parametrize(("document", "command", "printed"), [pytest.param(*c, id=c[1]) for c in commands()])
def test_printed_examples_are_what_is_printed(document: Path, command: str, printed: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "stanza_sim", *shlex.split(command)],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "80", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = stripped(done.stdout)
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", stripped(printed), flags=re.MULTILINE)]
    assert re.fullmatch("(?:.*\n)*?".join(parts), out), f"{name_of(document)}: `{command}` prints\n{out}"


def stripped(text: str) -> str:
    return "".join(line.rstrip() + "\n" for line in text.rstrip().splitlines())


def test_every_printed_example_is_compared_somewhere() -> None:
    for document in DOCUMENTS:
        for _, text in blocks(document):
            if text.startswith("$ stanza-sim "):
                compared = text.split()[2] in CHEAP or "--explain" in text.partition("\n")[0]
                assert compared or text.startswith("$ stanza-sim run ec2_v100\n"), name_of(document)


# ---- links


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", document.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    for target in LINK.findall(FENCE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (document.parent / path).resolve() if path else document
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def test_every_page_can_be_reached() -> None:
    """From README.md, link by link."""
    seen, left = set(), [ROOT / "README.md"]
    while left:
        document = left.pop()
        if document not in seen:
            seen.add(document)
            targets = (target.partition("#")[0] for target in LINK.findall(document.read_text()))
            left += [p for t in targets if t.endswith(".md") and (p := (document.parent / t).resolve()).exists()]
    assert {name_of(d) for d in DOCUMENTS} <= {name_of(d) for d in seen}


# ---- columns and size


def explained() -> set[str]:
    return set(re.findall(r"\*\*([^*]+)\*\*", (ROOT / "docs" / "glossary.md").read_text()))


def texts(node: ast.expr | None) -> list[str]:
    """The constant texts of a node: itself, or the members of a tuple or list."""
    members = node.elts if isinstance(node, ast.Tuple | ast.List) else [node]
    return [m.value for m in members if isinstance(m, ast.Constant) and isinstance(m.value, str)]


def columns() -> Iterator[tuple[str, str]]:
    """Every heading of a printed table and of a CSV that the package's source states, with its file."""
    for path in sorted((ROOT / "stanza_sim").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                found = [t for k in node.keywords if k.arg == "heading" for t in texts(k.value)]
                if function in ("add_column", "_table", "_columns", "writerow") and node.args:
                    found += texts(node.args[0])
            elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("heads", "heading", "_CSV"):
                found = texts(node.value)
            else:
                continue
            yield from ((heading, str(path.relative_to(ROOT))) for heading in found if heading)


def test_the_glossary_has_every_column() -> None:
    known, found = explained(), list(columns())
    assert len(found) > 60
    missing = {heading: path for heading, path in found if heading not in known}
    assert not missing, missing


def test_the_glossary_has_every_column_of_a_sweep() -> None:
    path = ROOT / "experiments" / "bandwidth_crossover" / "sweep.csv"
    with path.open(newline="") as file:
        heads = set(next(csv.reader(file))) - {"network.rate"}
    assert heads <= explained()


def test_documents_stay_short() -> None:
    for name, most in MOST_LINES.items():
        assert len((ROOT / name).read_text().splitlines()) <= most, name


def test_accuracy_has_the_figures_of_the_committed_reports() -> None:
    text = (ROOT / "docs" / "explanation" / "accuracy.md").read_text()
    summary = json.loads((ROOT / "experiments" / "validation" / "published" / "results.json").read_text())["summary"]
    for group in [*summary["training"][:4], summary["nccl"][0], summary["single"][0]]:
        errors = group["errors_pct"]
        assert f"| {errors['rows']} | {errors['median']:.1f}%, {errors['p90']:.1f}% |" in text, group["name"]
    for suite in ("emulated", "real"):
        errors = json.loads((ROOT / "experiments" / "validation" / suite / "results.json").read_text())["errors_pct"]
        assert f"median {errors['median']:.2f}%, p90 {errors['p90']:.2f}%, worst {errors['max']:.2f}%" in text, suite
