"""What the default monitor tells of ten ordinary networks, and how long it takes.

``python -m tests.benchmarks.ordinary [NAME …] [--steps 300] [--json FILE]`` trains each network in
a process of its own with a plain ``HessianRankMonitor()``. It measures before the first step and
after the last. Prints a Markdown table: wall seconds of both measurements (each has a budget of
60), peak memory of the process, and what the second one told.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from lightning_hessrank import HessianRankMonitor, __version__
from tests.benchmarks import records
from tests.benchmarks.engine import machine
from tests.benchmarks.networks import ORDINARY, ordinary

COLUMNS = ("network", "p", "first s", "last s", "peak GiB", "method", "counts", "outer", "bound")


def one(name: str, steps: int) -> dict[str, Any]:
    """Train a network under the default monitor; return what was told."""
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    module, loader = ordinary(name)
    monitor = HessianRankMonitor(every_n_epochs=None, every_n_steps=10**9, progress_bar=False)
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
    trainer.fit(module, loader)
    return {
        "network": name,
        "peak GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "history": monitor.history,
    }


def row(found: dict[str, Any]) -> tuple[str, ...]:
    """What a table shows of a network."""
    first, last = found["history"][0], found["history"][-1]
    errors = last.get("count_errors", {})
    counts = ", ".join(
        f"{float(t):.0e}: {n:,.0f}" + (f" ± {2 * errors[t]:,.0f}" if errors.get(t) else "")
        for t, n in last["counts"].items()
    )
    return (
        found["network"],
        f"{last['num_parameters']:,}",
        f"{first['seconds']:.0f}",
        f"{last['seconds']:.0f}",
        f"{found['peak GiB']:.1f}",
        last["method"],
        counts or "none",
        _told(last.get("rank_outer")),
        str(last.get("bound", last.get("batch_bound", ""))),
    )


def _told(rank: float | None) -> str:
    """An exact rank, an estimate, or why there is none."""
    if rank is None:
        return "output unknown"
    if isinstance(rank, int):
        return str(rank)
    return "not resolved" if math.isnan(rank) else f"about {rank:.0f}"


def main() -> None:
    """Measure all networks, or those named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*ORDINARY, []])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", type=Path, help="also write the table into this file")
    parser.add_argument("--one", action="store_true", help="of a single network, in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(one(given.names[0], given.steps)))
        return
    print("| " + " | ".join(COLUMNS) + " |")
    print("|" + "---|" * len(COLUMNS))
    table = [list(COLUMNS)]
    for name in given.names or ORDINARY:
        command = [sys.executable, "-m", __spec__.name, name, "--steps", str(given.steps), "--one"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
            continue
        found = json.loads(done.stdout.splitlines()[-1])
        table.append(list(row(found)))
        print("| " + " | ".join(table[-1]) + " |", flush=True)
    if given.json:
        records.TABLES["ordinary"] = [table]
        records.write(given.json, machine(), __version__)


if __name__ == "__main__":
    main()
