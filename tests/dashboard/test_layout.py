"""TensorBoard's page of charts: which, of what, and whose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pytorch_lightning.loggers import TensorBoardLogger

from lightning_hessrank.dashboard import Dashboard
from lightning_hessrank.dashboard.tensorboard import LAYOUT_TAG
from tests.dashboard import synthetic
from tests.dashboard.reading import PLAIN, layout, read, write


def test_charts_match_exactly_their_tags(tmp_path: Path) -> None:
    import re

    logger = TensorBoardLogger(tmp_path)
    write(PLAIN, [logger])
    events = read(logger.log_dir)
    ((title, page),) = layout(events).items()
    assert title == "hessian: rank of the loss Hessian"
    matched = {
        chart: [t for pattern in tags for t in events.Tags()["scalars"] if re.match(pattern, t)]
        for chart, tags in page.items()
    }
    bound = "hessian-bound/rank"
    tolerances = [f"hessian-tolerance/rank_{t}" for t in ("1e-1", "1e-3", "machine")]
    assert matched == {
        "What is happening: rank at 1e-1, 1e-3 and machine precision; bound (reference line)": [
            *tolerances,
            bound,
        ],
        "Rank, bound (reference line), parameters": [
            "hessian/rank",
            bound,
            "hessian-bound/parameters",
        ],
        "Rank and its outer-product and functional parts": [
            "hessian/rank",
            "hessian/rank_outer",
            "hessian/rank_functional",
        ],
    }
    assert len(events.Tensors(LAYOUT_TAG)) == 1


def test_charts_of_a_theorem_and_of_an_estimate(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="theorem")
    linear = synthetic.measurement(bound=synthetic.bound(is_theorem=True), outer=None)
    write(PLAIN, [logger], [(linear, [linear.record()])])
    assert list(layout(read(logger.log_dir))["hessian: rank of the loss Hessian"]) == [
        "What is happening: rank at 1e-1, 1e-3 and machine precision; bound (theorem)",
        "Rank, bound (theorem), parameters",
    ]
    logger = TensorBoardLogger(tmp_path, name="estimate")
    write(PLAIN, [logger], synthetic.run(1, stochastic=True))
    assert layout(read(logger.log_dir))["hessian: rank of the loss Hessian"] == {
        "What is happening: estimated rank at 1e-1 and 1e-3; bound (reference line)": [
            "hessian\\-tolerance/rank_1e\\-1$",
            "hessian\\-tolerance/rank_1e\\-3$",
            "hessian\\-bound/rank$",
        ],
        "Estimated rank, 95 % interval": [
            f"hessian-estimate/{x}" for x in ("rank", "rank_lower", "rank_upper")
        ],
    }


def test_a_failed_measurement_takes_no_chart_away_and_the_next_adds_them(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    good = synthetic.measurement(15)
    runs = [(synthetic.failed(0), []), (good, []), (synthetic.failed(30), [])]
    write(PLAIN, [logger], runs)
    events = read(logger.log_dir)
    assert len(layout(events)["hessian: rank of the loss Hessian"]) == 3
    assert [e.step for e in events.Scalars("hessian/rank")] == [0, 15, 30]
    assert np.isnan(events.Scalars("hessian/rank")[0].value)


def test_titles_stay_when_a_later_measurement_has_no_bound(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    theorem = synthetic.measurement(0, bound=synthetic.bound(is_theorem=True))
    write(PLAIN, [logger], [(theorem, []), (synthetic.measurement(1, bound=None), [])])
    events = read(logger.log_dir)
    assert len(events.Tensors(LAYOUT_TAG)) == 1
    assert "(theorem)" in next(iter(layout(events)["hessian: rank of the loss Hessian"]))


def test_two_monitors_share_a_page(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path)
    for name in ("hessian", "validation"):
        write(Dashboard(name=name, figures=False), [logger])
    pages = layout(read(logger.log_dir))
    assert list(pages) == [f"{n}: rank of the loss Hessian" for n in ("hessian", "validation")]
    assert all(len(page) == 3 for page in pages.values())


@pytest.mark.parametrize("when", ["before", "after", "before a resume"])
def test_a_layout_of_the_users_own_stays(tmp_path: Path, when: str) -> None:
    logger = TensorBoardLogger(tmp_path, version=0)
    own = {"mine": {"loss": ["Multiline", ["train_loss"]]}}
    if when != "after":
        logger.experiment.add_custom_scalars(own)
    if when == "before a resume":
        logger.finalize("success")
        logger = TensorBoardLogger(tmp_path, version=0)
    write(PLAIN, [logger])
    if when == "after":
        logger.experiment.add_custom_scalars(own)
        write(PLAIN, [logger])
    logger.experiment.flush()
    assert layout(read(logger.log_dir)) == {"mine": {"loss": ["train_loss"]}}
