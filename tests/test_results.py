"""Results: intervals within what is possible, counts that are known, and dicts that say all."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightning_hessrank.results import LayerBound, RankBound, t_quantile
from tests.dashboard import synthetic


def test_t_quantile_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy comes with the examples")
    for samples in [*range(2, 60), 100, 1000]:
        assert t_quantile(samples) == pytest.approx(stats.t.ppf(0.975, samples - 1), abs=6e-4)
    assert t_quantile(1) == math.inf
    assert t_quantile(None) == pytest.approx(1.96, abs=1e-4)


def test_interval_stays_within_what_a_rank_can_be() -> None:
    assert synthetic.lanczos(p=100, rank=99.0, std_error=5.0).interval[1] == 100
    assert synthetic.lanczos(rank=1.0, std_error=5.0).interval[0] == 0
    assert synthetic.dense().interval == (747, 747)
    assert all(math.isnan(x) for x in synthetic.failed().total.interval)


def test_one_probe_says_nothing_of_the_spread() -> None:
    one = replace(synthetic.lanczos(p=500), num_probes=1)
    assert one.interval == (0, 500)
    assert torch.isfinite(torch.tensor(one.interval)).all()


def test_a_pickled_result_can_be_drawn_by_a_process_that_knows_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bound.pkl"
    bound = RankBound(3, 2, 1, (LayerBound("a", 4, 1),), 4, "patch", is_theorem=True, reason="")
    path.write_bytes(pickle.dumps(bound))
    program = f"import pickle; print(pickle.load(open({str(path)!r}, 'rb')).plot().axes)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "Axes" in done.stdout
