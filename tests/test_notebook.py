"""Notebooks: results, monitors and figures show themselves, without any magic command."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).parents[1]
SETUP = """
import sys
sys.path.insert(0, {root!r})
import torch
from lightning_hessrank import HessianRankMonitor, hessian_rank, rank_bound
data = torch.eye(3), torch.zeros(3, 2)
net = torch.nn.Linear(3, 2)
found = hessian_rank(net, "mse", data, method="dense")
bound = rank_bound(net, data[0], data=data[0])
monitor = HessianRankMonitor()
record = {{"step": 1, "epoch": 0, "loss": 0.5, "rank": 6, "num_parameters": 8, "method": "dense",
          "rtol": 1e-15, "std_error": 0.0, "counts": {{1e-3: 6}}}}
"""
CELLS = ["found", "bound", "found.plot()", "monitor", "monitor.history.append(record); monitor"]


@pytest.fixture(scope="module")
def shown() -> list[dict[str, str]]:
    """What every cell shows, by MIME type, without ``%matplotlib inline``."""
    notebook = nbformat.v4.new_notebook()
    cells = [SETUP.format(root=str(ROOT)), *CELLS]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
    nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    outputs = [cell.outputs for cell in notebook.cells]
    assert outputs[0] == []  # imports are silent
    assert all(len(x) == 1 for x in outputs[1:])
    return [dict(x[0].data) for x in outputs[1:]]


def test_results_are_tables(shown: list[dict[str, str]]) -> None:
    pages = [re.sub("<.*?>", " ", cell.get("text/html", "")) for cell in shown]
    estimate, bound, _, empty, monitor = pages
    assert re.search(r"rank \(total\)\s+6 of 8\s+beyond\s+1\.8e-15 max\|λ\|", estimate)
    assert "Rank bound of the loss Hessian (closed-form, theorem)" in bound
    assert "no rank was measured" in empty
    assert "rank 6 of 8 parameters" in monitor
    assert re.search(r"step\s+epoch\s+loss\s+rank\s+1\s+0\s+0\.5\s+6", monitor)


def test_figures_are_pictures(shown: list[dict[str, str]]) -> None:
    assert base64.b64decode(shown[2]["image/png"]).startswith(b"\x89PNG")
