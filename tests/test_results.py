"""Results: intervals within what is possible, counts that are known, and dicts that say all."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_hessrank import rank_bound
from lightning_hessrank.results import (
    LayerBound,
    Measurement,
    RankBound,
    RankEstimate,
    t_quantile,
)
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


def test_what_is_known_of_each_count() -> None:
    estimate = RankEstimate(
        rank=40.0,
        std_error=2.0,
        rtol=1e-2,
        tolerance=0.1,
        gap=None,
        method="lanczos",
        num_parameters=100,
        num_products=30,
        seconds=1.0,
        counts={1e-1: 7.0, 1e-2: 40.0},
        count_errors={1e-2: 2.0},
        ranges={1e-2: (20, 90), 1e-3: (31, 100)},
    )
    assert estimate.interval_at(1e-1) == (7.0, 7.0)
    assert (
        estimate.interval_at(1e-2) == estimate.interval == pytest.approx((36.08, 43.92), abs=1e-2)
    )
    assert estimate.interval_at(1e-3) == (31.0, 100.0)
    record = Measurement(step=0, epoch=0, total=estimate).record()
    # no fewer eigenvalues are beyond a finer tolerance, and no more than a theorem allows
    least = estimate.interval[0]
    assert record["ranges"] == {1e-2: estimate.interval, 1e-3: (least, 100.0)}
    for theorem, most in ((True, 90.0), (False, 100.0)):
        bound = _bound(90, is_theorem=theorem)
        for bounds in ({"bound": bound}, {"batch_bound": bound}):
            record = Measurement(step=0, epoch=0, total=estimate, **bounds).record()
            assert record["ranges"] == {1e-2: estimate.interval, 1e-3: (least, most)}


def _estimate(rank: float, part: Any = "total", **facts: Any) -> RankEstimate:
    given = {"std_error": 0.0, "rtol": 1e-3, "tolerance": 1e-3, "gap": None, "method": "dense"}
    given |= {"num_parameters": 100, "num_products": 0, "seconds": 0.0, "part": part}
    return RankEstimate(rank=rank, **{**given, **facts})


def _bound(total: int, **facts: Any) -> RankBound:
    given = {"kind": "patch", "is_theorem": False, "reason": "", "outputs": 3}
    return RankBound(total, 60, 60, (), 100, **{**given, **facts})


PLAIN = Measurement(
    0, 0, _estimate(70), outer=_estimate(48, "outer"), bound=_bound(90), num_samples=20
)


@pytest.mark.parametrize(
    ("measurement", "words"),
    [
        (PLAIN, None),
        (replace(PLAIN, total=_estimate(100)), "the number of parameters"),
        (replace(PLAIN, bound=_bound(70, is_theorem=True)), "the bound 70 (theorem)"),
        (replace(PLAIN, bound=_bound(70)), None),  # of a reference line it is no limit
        (
            replace(PLAIN, num_samples=16),
            "the data, in its outer-product part: 16 samples × 3 outputs = 48",
        ),
        (replace(PLAIN, num_samples=None), None),
        (replace(PLAIN, batch_bound=_bound(70)), "the batch bound 70"),
        (replace(PLAIN, total=_estimate(math.nan), num_samples=16), None),
        (replace(PLAIN, total=_estimate(100.0, std_error=2.0), num_samples=16), None),
        (replace(PLAIN, outer=None, bound=None, num_samples=16), None),
    ],
)
def test_the_limit_is_named(measurement: Measurement, words: str | None) -> None:
    assert measurement.limited_by == words
    assert measurement.record().get("limited_by") == words


@pytest.mark.parametrize(
    ("total", "facts", "outer", "whole"),
    [
        (100, {"outer": 60, "functional": 60}, "", "all parameters: no cap"),
        (90, {"outer": 48, "functional": 42}, "", "outer-product + functional"),
        (
            90,
            {"outer": 48, "functional": 42, "num_samples": 16},
            "the data: 16 samples × 3 outputs",
            "outer-product + functional",
        ),
        (90, {"outer": 48, "functional": 60}, "", "bounded as a whole, below the sum of its parts"),
        (
            73,
            {"outer": 95, "functional": 60},
            "",
            "bounded as a whole, below the bounds of its parts",
        ),
        (73, {"outer": None, "functional": None}, None, ""),
    ],
)
def test_the_table_of_a_bound_says_why_each_sum_is_what_it_is(
    total: int, facts: dict[str, Any], outer: str | None, whole: str
) -> None:
    lines = str(replace(_bound(total), **facts)).split("\n")
    said = {line[:13].strip(): line[26:].strip() for line in lines}
    assert said.get("outer-product") == outer
    assert said["total"] == whole
    assert said["parameters"] == ""


def test_the_total_of_a_bound_on_a_real_network_is_explained() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(12, 24), torch.nn.ReLU(), torch.nn.Linear(24, 5))
    found = rank_bound(net, torch.zeros(1, 12), loss="cross_entropy")
    assert found.outer is not None
    assert found.functional is not None
    assert found.total < found.outer + found.functional
    assert f"{found.total}  bounded as a whole, below the sum of its parts" in str(found)
