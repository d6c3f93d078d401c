"""How many times the samples/s of each baseline Stanza has, from the CSV of a sweep.

    python benchmarks/ratios.py experiments/paper_speedup/sweep.csv

Prints, for each cluster and number of nodes, a line for each baseline: one row of Stanza over it (`--row`; default: its
CONV part by ring, all else by default) and the best of all rows of Stanza over it, for each model; then the ranges of
these over the numbers of nodes, with a star where all of it lies within 1.34 to 13.9 (arXiv 1812.10624, abstract).
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from pathlib import Path

PUBLISHED = (1.34, 13.9)
DEFAULT = "Stanza, CONV by ring"

Line = dict[str, str]


def published(ratio: float) -> bool:
    """Whether a ratio is in the published range."""
    return PUBLISHED[0] <= ratio <= PUBLISHED[1]


def main() -> None:
    """Print all ratios, then their ranges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path)
    parser.add_argument("--row", default=DEFAULT, metavar="LABEL", help="the row of Stanza to compare besides its best")
    options = parser.parse_args()
    with options.csv.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["samples_per_s"]]
    rates: dict[tuple[str, str], dict[tuple[str, str], float]] = defaultdict(dict)
    best: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    strategy: dict[str, str] = {}
    for line in lines:
        place, model, rate = (line["cluster"], line["nodes"]), line["model"], float(line["samples_per_s"])
        rates[place][line["label"], model] = rate
        strategy.setdefault(line["label"], line["strategy"])
        if line["strategy"] == "stanza":
            best[place][model] = max(rate, best[place].get(model, 0.0))
    models = list(dict.fromkeys(line["model"] for line in lines))
    baselines = [label for label, name in strategy.items() if name != "stanza"]
    print(f"samples/s over each baseline's: {options.row} / the best row of Stanza")
    ranges: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for place, known in rates.items():
        cluster, nodes = place
        print(f"\n{cluster}, {nodes} nodes")
        print(f"{'baseline':<20}" + "".join(f"{model:>16}" for model in models))
        for label in baselines:
            cells = []
            for model in models:
                base, default = known.get((label, model)), known.get((options.row, model))
                if base is None or default is None:
                    cells.append("-")
                    continue
                both = default / base, best[place][model] / base
                ranges[cluster, label, model].append(both)
                cells.append(f"{both[0]:.2f} / {both[1]:.2f}")
            print(f"{label:<20}" + "".join(f"{cell:>16}" for cell in cells))
    for i, which in enumerate((options.row, "the best row of Stanza")):
        print(f"\nleast and greatest over the numbers of nodes, {which}; * all of it is within 1.34 to 13.9")
        for cluster in dict.fromkeys(cluster for cluster, _ in rates):
            print(f"{cluster:<20}" + "".join(f"{model:>16}" for model in models))
            for label in baselines:
                text = ""
                for model in models:
                    some = [both[i] for both in ranges[cluster, label, model]]
                    if not some:
                        text += f"{'-':>16}"
                        continue
                    star = "*" if all(map(published, some)) else " "
                    text += f"{f'{min(some):.2f} to {max(some):.2f}{star}':>16}"
                print(f"{label:<20}{text}")


if __name__ == "__main__":
    main()
