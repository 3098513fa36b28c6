"""Run the packages named, or all that are installed, and write what the rows say as a table.

``python -m tests.thirdparty [PACKAGE …] [--table]``; ``--table`` only writes ``table.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PACKAGES = sorted(path.stem.removeprefix("run_") for path in HERE.glob("run_*.py"))
COLUMNS = (
    *("package", "model", "p", "samples", "rank: machine, 1e-3", "oracle", "outer", "functional"),
    *("linear bound", "batch bound", "s a measurement", "ms a step", "undisturbed"),
)


def main() -> None:
    """Run, each package in a process of its own, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("packages", nargs="*", choices=[*PACKAGES, []])
    parser.add_argument("--table", action="store_true", help="only write the table")
    given = parser.parse_args()
    failed = []
    for name in [] if given.table else given.packages or PACKAGES:
        print(f"== {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"tests.thirdparty.run_{name}"], check=False)
        failed += [name] if done.returncode else []
    write_table()
    if failed:
        sys.exit(f"not installed, or failed: {', '.join(failed)}")


def write_table() -> None:
    """Write ``table.md`` from all rows."""
    rows = [json.loads(path.read_text()) for path in sorted((HERE / "rows").glob("*.json"))]
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in rows]
    said: dict[str, list[str]] = {}
    for row in rows:
        for text in row["said"]:
            said.setdefault(text.splitlines()[0], []).append(f"{row['package']} {row['model']}")
    lines += ["", "What was said:", ""]
    lines += [f"- {text} ({'; '.join(models)})" for text, models in said.items()]
    text = "# Models of published packages under the monitor\n\n" + "\n".join(lines) + "\n"
    (HERE / "table.md").write_text(text)


def _cells(row: dict[str, Any]) -> list[str]:
    model = row["model"] + "".join(f", `{k}={v}`" for k, v in row["options"].items())
    undisturbed = "yes" if row["undisturbed"] else f"**no**: {', '.join(row['different'])}"
    if "rank" not in row:
        return [row["package"], model, *[""] * 10, undisturbed]
    exact = row["method"] == "dense"
    rank = f"{row['rank']}, {row['counts']['0.001']}" if exact else _number(row["rank"])
    oracle = row["oracle"]
    if isinstance(oracle, dict):
        oracle = "equal" if row["agrees"] else f"**{oracle['machine']}, {oracle['1e-3']}**"
    bound = str(row.get("bound", "none"))
    if row.get("bound_is_theorem"):
        bound += " (theorem)"
    parts = [_number(row.get(f"rank_{part}")) for part in ("outer", "functional")]
    numbers = [f"{row['num_parameters']:,}", str(row["num_samples"])]
    batch = str(row.get("batch_bound", "none"))
    times = [f"{row['seconds']:.1f}", f"{1000 * row['seconds_per_step']:.0f}"]
    found = [rank, oracle, *parts, bound, batch, *times]
    return [row["package"], model, *numbers, *found, undisturbed]


def _number(rank: float | None) -> str:
    """A rank, an estimate to its nearest whole number, or none."""
    if rank is None or math.isnan(rank):
        return "none" if rank is None else "not resolved"
    return str(rank) if isinstance(rank, int) else f"about {rank:,.0f}"


if __name__ == "__main__":
    main()
