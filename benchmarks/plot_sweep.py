"""Draw a sweep's CSV: samples/s of every row over one varied key, a panel for each model. Needs matplotlib.

    python benchmarks/plot_sweep.py experiments/bandwidth_crossover/sweep.csv network.rate
    python benchmarks/plot_sweep.py experiments/paper_speedup/sweep.csv nodes --where cluster=ec2-p3-10

`--where KEY=VALUE` keeps the lines of that value; the picture lies beside the CSV unless `-o` says otherwise.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

STYLES = ("-", "--", ":", "-.")


def number(text: str) -> float:
    """The number that a value begins with, such as 10 of `10Gbps`."""
    found = re.match(r"[0-9.]+", text)
    if found is None:
        raise SystemExit(f"{text!r} does not begin with a number")
    return float(found[0])


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("key")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with options.csv.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["samples_per_s"]]
    for wanted in options.where:
        key, _, value = wanted.partition("=")
        lines = [line for line in lines if line[key] == value]
    models = list(dict.fromkeys(line["model"] for line in lines))
    labels = list(dict.fromkeys(line["label"] for line in lines))
    figure, panels = pyplot.subplots(1, len(models), figsize=(4 * len(models), 4.8), squeeze=False)
    for panel, model in zip(panels[0], models, strict=True):
        for i, label in enumerate(labels):
            mine = [line for line in lines if (line["model"], line["label"]) == (model, label)]
            dots = sorted((number(line[options.key]), float(line["samples_per_s"])) for line in mine)
            style = STYLES[i // 10 % len(STYLES)]
            panel.plot(*zip(*dots, strict=True), style, marker=".", color=f"C{i % 10}", label=label)
        panel.set(title=model, xlabel=options.key, xscale="log", yscale="log")
        ticks = sorted({number(line[options.key]) for line in lines})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
    panels[0][0].set_ylabel("samples/s")
    handles, names = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="lower center", ncols=4, fontsize=8)
    rows = -(-len(labels) // 4)
    figure.tight_layout(rect=(0, 0.05 * rows, 1, 1))
    figure.savefig(options.output or options.csv.with_suffix(".png"), dpi=90)


if __name__ == "__main__":
    main()
