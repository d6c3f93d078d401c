"""Puts a page together: tables in HTML, data in JSON, charts by a script, and Apache ECharts, all in one file.

Every text of a file is escaped, in HTML and in JSON; the script writes text only, never HTML. A content security policy
lets the browser run the two scripts of this program, by their hashes, and load nothing from anywhere.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from html import escape
from pathlib import Path
from string import Template

from stanza_sim.base.files import write_whole
from stanza_sim.base.telling import Tell
from stanza_sim.report.folder import PAGE
from stanza_sim.report.page.data import page_data
from stanza_sim.report.page.tables import comparison, facts, infeasible, legend, options, sources
from stanza_sim.report.saved import Saved, read_folder

_HERE = Path(__file__).parent
_ECHARTS = Path(__file__).parents[2] / "data" / "echarts" / "echarts.min.js"
_SCRIPTS = ("timeline.js", "page.js")
_SAFE = {ord("<"): "\\u003c", ord(">"): "\\u003e", ord("&"): "\\u0026", 0x2028: "\\u2028", 0x2029: "\\u2029"}
"""What could end a script's element, or a line of it, within JSON."""


def write_page(folder: Path, tell: Tell = lambda what, done, total: None) -> Path:
    """Write `report.html` into the folder of a result, and return its path.

    Raises `InputError` for a folder that holds no result, and where the page cannot be written.
    """
    saved = read_folder(folder)
    path = folder / PAGE
    write_whole(page_html(saved, tell), path)
    return path


def page_html(saved: Saved, tell: Tell = lambda what, done, total: None) -> str:
    """The page of a result that was read back."""
    scripts = [
        _ECHARTS.read_text(encoding="utf-8"),
        "\n".join((_HERE / n).read_text(encoding="utf-8") for n in _SCRIPTS),
    ]
    data = json.dumps(page_data(saved, tell), allow_nan=False, separators=(",", ":")).translate(_SAFE)
    first = saved.rows[0].run
    nodes = f"{first.nodes:,} node{'s' if first.nodes != 1 else ''} of {first.cluster}, {first.precision}"
    return Template((_HERE / "page.html").read_text(encoding="utf-8")).substitute(
        policy="; ".join(
            [
                "default-src 'none'",
                f"script-src {' '.join(map(_hash, scripts))}",
                "style-src 'unsafe-inline'",
                "img-src data:",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        title=escape(saved.experiment),
        subtitle=escape(nodes),
        style=(_HERE / "page.css").read_text(encoding="utf-8"),
        comparison=comparison(saved),
        legend=legend(saved),
        infeasible=infeasible(saved),
        models=options([(str(i), model) for i, model in enumerate(saved.by_model())]),
        facts=facts(saved),
        sources=sources(saved),
        data=data,
        echarts=scripts[0],
        script=scripts[1],
    )


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{b64encode(digest).decode()}'"
