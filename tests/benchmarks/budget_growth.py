"""What the default budget buys as networks grow: ``python -m tests.benchmarks.budget_growth``.

Fully connected ReLU networks on enlarged digits, from a thousand to ten million parameters, are
trained for some steps and measured once by a plain ``HessianRankMonitor()``. Prints a Markdown
table and draws the seconds, and what was told at each tolerance, into ``budget.png``.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_hessrank import HessianRankMonitor
from lightning_hessrank.tolerance import COUNT_TOLERANCES
from tests.benchmarks.engine import table
from tests.benchmarks.networks import Classifier, images

#: Pixels a side and hidden width: about 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7 parameters.
SIZES = (
    *((8, 13), (8, 40), (8, 110), (14, 120), (28, 120), (28, 290), (28, 690)),
    *((28, 1380), (28, 2800)),
)
SECONDS = 60.0
#: What was told of a count, from most to least, with its colour.
TOLD = {"exact": "#1b7837", "estimate": "#7fbf7b", "range": "#d9d9d9", "nothing": "#ffffff"}


def measured(size: int, width: int, steps: int) -> dict[str, Any]:
    """Train a network, measure it after the last step, and return the record."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Flatten(), nn.Linear(size**2, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)),
    )
    monitor = HessianRankMonitor(max_seconds=SECONDS, every_n_steps=steps, progress_bar=False)
    trainer = pl.Trainer(
        max_steps=steps,
        max_epochs=-1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    )
    trainer.fit(Classifier(net), DataLoader(images(size), 128, shuffle=True))
    return dict(monitor.history[-1])


def told(record: dict[str, Any], rtol: float) -> str:
    """What is known of the count at a tolerance."""
    counts = {float(t): n for t, n in record["counts"].items()}
    low, high = {float(t): x for t, x in record.get("ranges", {}).items()}.get(rtol, (0, None))
    if rtol in counts:
        return "exact" if high is None or low == high else "estimate"
    known = low > 0 or (high is not None and high < record["num_parameters"])
    return "range" if known else "nothing"


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Seconds against parameters, above what was told at each tolerance."""
    sizes = [record["num_parameters"] for record in records]
    figure, (above, below) = plt.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    above.plot(sizes, [record["seconds"] for record in records], "o-", color="#333333")
    above.axhline(SECONDS, color="#b2182b", linestyle="--", label="budget")
    above.set(xscale="log", ylabel="seconds", ylim=(0, 1.15 * SECONDS))
    above.legend(loc="upper left")
    for row, rtol in enumerate(COUNT_TOLERANCES):
        colours = [TOLD[told(record, rtol)] for record in records]
        below.scatter(sizes, [row] * len(sizes), c=colours, s=120, edgecolors="#888888")
    labels = [f"{rtol:.0e}" for rtol in COUNT_TOLERANCES]
    below.set(xlabel="parameters", ylabel="rtol of the count", yticks=range(len(labels)))
    below.set_yticklabels(labels)
    handles = [plt.Line2D([], [], marker="o", ls="", mfc=c, mec="#888888") for c in TOLD.values()]
    below.legend(handles, list(TOLD), ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--largest", type=int, default=len(SIZES), help="how many of the sizes")
    parser.add_argument("--picture", type=Path, default=Path(__file__).parent / "budget.png")
    arguments = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    records = []
    for size, width in SIZES[: arguments.largest]:
        records.append(measured(size, width, arguments.steps))
        print(records[-1]["num_parameters"], f"{records[-1]['seconds']:.1f} s", flush=True)
    header = ("parameters", "seconds", "method", "outer", *(f"{t:.0e}" for t in COUNT_TOLERANCES))
    rows = [
        (
            f"{record['num_parameters']:,}",
            f"{record['seconds']:.1f}",
            record["method"],
            str(record.get("rank_outer", "")),
            *(told(record, t) for t in COUNT_TOLERANCES),
        )
        for record in records
    ]
    table([header, *rows])
    draw(records, arguments.picture)


if __name__ == "__main__":
    main()
