"""The way to the dashboard: a command and a link."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from lightning_hessrank.dashboard import Dashboard, dashboard_url


def test_announcement_leads_to_the_run(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path / "my runs", name="digits", prefix="p")
    said = Dashboard(name="h").start([CSVLogger(tmp_path), logger])
    title, command, link = said.splitlines()
    assert title == "Rank of the loss Hessian on TensorBoard:"
    folder = f"'{tmp_path / 'my runs'}'"
    assert command == f"  tensorboard --logdir {folder} --samples_per_plugin images=100"
    url = urlsplit(link.strip())
    assert (url.netloc, url.path, url.query) == ("localhost:6006", "/", "")
    assert url.fragment == "hessian"


def test_of_the_working_directory_only_the_logs_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, command, _ = Dashboard(name="h").start([TensorBoardLogger(tmp_path)]).splitlines()
    folder = tmp_path / "lightning_logs"
    assert command == f"  tensorboard --logdir {folder} --samples_per_plugin images=100"


def test_the_stock_cards_are_pinned_and_not_smoothed() -> None:
    url = urlsplit(dashboard_url("h", prefix="p-", run="digits/version_0"))
    assert (url.path, url.fragment) == ("/", "timeseries&_smoothingWeight=0")
    query = parse_qs(url.query)
    assert query["smoothing"] == ["0"]
    cards = json.loads(query["pinnedCards"][0])
    assert [c["tag"] for c in cards] == [
        "p-h-figures/overview",
        "p-h-figures/sorted",
        "p-h-tolerance/rank_machine",
        "p-h-estimate/rank",
        "p-h/rank_over_bound",
        "p-h-tolerance/rank_1e-3",
    ]
    images = [c for c in cards if c["plugin"] == "images"]
    assert {(c["runId"], c["sample"]) for c in images} == {
        ("defaultExperimentId/digits/version_0", 0)
    }
