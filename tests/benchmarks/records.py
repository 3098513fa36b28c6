"""Results of benchmarks as data: one JSON file for each machine; two of them compared.

    python -m tests.benchmarks.engine --json tests/benchmarks/results/mine.json
    python -m tests.benchmarks.records tests/benchmarks/results/mine.json        # as Markdown
    python -m tests.benchmarks.records before.json after.json                    # ratios

A file has ``machine`` (what the times were taken on), ``version`` of the package, and ``results``:
name of a benchmark -> its tables, each a list of rows of which the first is the header.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

Table = list[list[str]]

#: Tables that benchmarks have printed, by name.
TABLES: dict[str, list[Table]] = {}


class Change(NamedTuple):
    """One number in two files."""

    benchmark: str
    row: str
    column: str
    before: float
    after: float


def write(path: Path, machine: str, version: str) -> None:
    """Write what was recorded; benchmarks that the file has and that were not run stay."""
    kept = read(path)["results"] if path.exists() else {}
    content = {"machine": machine, "version": version, "results": {**kept, **TABLES}}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    path.write_text(text, "utf-8")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def markdown(table: Table) -> str:
    """Lay out a table in aligned columns."""
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [" | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in table]
    rule = "-|-".join("-" * w for w in widths)
    return "\n".join(f"| {line} |" for line in (lines[0], rule, *lines[1:]))


def number(cell: str) -> float | None:
    """The number that a cell is, its unit left out; times in seconds."""
    match = re.fullmatch(r"(-?[\d,]*\.?\d+(?:e[-+]?\d+)?)(?: (ms|s|min|GiB|GB))?", cell.strip())
    if match is None:
        return None
    return float(match[1].replace(",", "")) * {"ms": 1e-3, "min": 60.0}.get(match[2], 1.0)


def changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """Numbers that both files have, by benchmark, row (its first cell) and column."""
    cells = [dict(_cells(content["results"])) for content in (before, after)]
    for key, value in cells[0].items():
        if key in cells[1]:
            yield Change(*key, value, cells[1][key])


def _cells(results: dict[str, list[Table]]) -> Iterator[tuple[tuple[str, str, str], float]]:
    for name, tables in results.items():
        for header, *rows in tables:
            for row in rows:
                for column, cell in zip(header[1:], row[1:], strict=True):
                    value = number(cell)
                    if value is not None:
                        yield (name, row[0], column), value


def main(*paths: str) -> None:
    """Print one file, or what changed from one to another."""
    first, *others = (read(Path(path)) for path in paths)
    if not others:
        print(f"{first['machine']}, lightning-hessrank {first['version']}")
        for name, tables in first["results"].items():
            print(f"\n### {name}\n")
            print("\n\n".join(map(markdown, tables)))
        return
    (second,) = others
    print(f"before: {first['machine']}, {first['version']}")
    print(f"after:  {second['machine']}, {second['version']}\n")
    rows = [["benchmark", "row", "column", "before", "after", "after / before"]]
    for c in changes(first, second):
        ratio = f"{c.after / c.before:.2f}" if c.before else ""
        rows.append([*c[:3], f"{c.before:.4g}", f"{c.after:.4g}", ratio])
    print(markdown(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
