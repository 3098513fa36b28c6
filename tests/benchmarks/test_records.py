"""Benchmarks as data: written, read, laid out, compared."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import records

RESULTS = sorted((Path(__file__).parent / "results").glob("*.json"))


@pytest.mark.parametrize(
    ("cell", "value"),
    [("3.72", 3.72), ("0.5 ms", 5e-4), ("1,482", 1482.0), ("4.0e+09", 4e9), ("mlp", None)],
)
def test_cells_are_numbers_where_they_are(cell: str, value: float | None) -> None:
    assert records.number(cell) == (None if value is None else pytest.approx(value))


def test_two_files_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, seconds in (("a", "2.0"), ("b", "500 ms")):
        tables = {"mlp": [[["package", "seconds"], ["ours", seconds], [name, "1"]]]}
        monkeypatch.setattr(records, "TABLES", tables)
        records.write(tmp_path / f"{name}.json", f"machine {name}", "0.2.0")
    (change,) = records.changes(*(records.read(tmp_path / f"{n}.json") for n in "ab"))
    assert change == ("mlp", "ours", "seconds", 2.0, 0.5)
    records.main(str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    last = capsys.readouterr().out.splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")] == [
        *("mlp", "ours", "seconds", "2", "0.5", "0.25"),
    ]


def test_what_was_not_run_again_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mlp", "cnn"):
        monkeypatch.setattr(records, "TABLES", {name: [[["row", "s"], ["x", "1"]]]})
        records.write(tmp_path / "m.json", "m", "0")
    assert set(json.loads((tmp_path / "m.json").read_text())["results"]) == {"mlp", "cnn"}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_kept_files_can_be_read(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records.main(str(path))
    assert capsys.readouterr().out.count("###") == len(records.read(path)["results"]) > 0
    assert list(records.changes(records.read(path), records.read(path)))
