"""Spectra on disk: one file for each measurement, as the monitor counted them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pytorch_lightning as pl

from lightning_hessrank import HessianRankMonitor, HessianRankWarning
from tests.training import QUIET, TRAINS, loader, plain_module

pytestmark = TRAINS


def fit(folder: Path, method: str) -> HessianRankMonitor:
    monitor = HessianRankMonitor(method=method, name="h", save_eigenvalues=folder)
    pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor]).fit(plain_module(pl), loader())
    return monitor


def test_each_file_has_the_ranks_of_its_measurement(tmp_path: Path) -> None:
    history = fit(tmp_path / "new" / "folder", "dense").history
    assert len(list((tmp_path / "new" / "folder").iterdir())) == len(history) == 2
    for record in history:
        kept = np.load(tmp_path / "new" / "folder" / f"h-step={record['step']}.npz")
        assert int(kept["epoch"]) == record["epoch"]
        assert kept["total"].dtype == np.float64
        assert (np.diff(kept["total"]) >= 0).all()
        assert int((abs(kept["total"]) > kept["tolerance"]).sum()) == record["rank"]
        for part in ("outer", "functional"):
            beyond = abs(kept[part]) > kept["rtol"] * abs(kept[part]).max()
            assert int(beyond.sum()) == record[f"rank_{part}"]


def test_where_there_are_none_it_is_said_once(tmp_path: Path) -> None:
    with pytest.warns(HessianRankWarning) as caught:
        monitor = fit(tmp_path, "lanczos")
    said = [str(w.message) for w in caught if "saved" in str(w.message)]
    assert said == [
        "HessianRankMonitor: eigenvalues were not saved: method='lanczos' counts eigenvalues "
        "without computing them, so there are none to save; pass method='dense'"
    ]
    assert len(monitor.history) == 2
    assert not list(tmp_path.iterdir())
