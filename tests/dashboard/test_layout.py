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
        "What is happening: rank at 1e-1, 1e-3 and machine precision, and bound": [
            *tolerances,
            bound,
        ],
        "Rank, bound, parameters": [
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


def test_titles_are_true_of_every_run_that_is_drawn_under_them(tmp_path: Path) -> None:
    """TensorBoard merges charts by title and draws all runs in each, a theorem or not."""
    pages = {}
    for name, changes in (
        ("theorem", {"bound": synthetic.bound(is_theorem=True), "outer": None}),
        ("reference", {}),
        ("estimate", {"stochastic": True}),
    ):
        logger = TensorBoardLogger(tmp_path, name=name)
        write(PLAIN, [logger], synthetic.run(1, **changes))
        (pages[name],) = layout(read(logger.log_dir)).values()
    merged = {title: tags for page in pages.values() for title, tags in page.items()}
    for page in pages.values():
        assert all(merged[title] == tags for title, tags in page.items())
    assert not any(word in title for title in merged for word in ("theorem", "reference"))
    assert list(pages["theorem"]) == [
        "What is happening: rank at 1e-1, 1e-3 and machine precision, and bound",
        "Rank, bound, parameters",
    ]
    assert pages["estimate"]["Estimated rank, 95 % interval"] == [
        f"hessian-estimate/{x}" for x in ("rank", "rank_lower", "rank_upper")
    ]
    assert "Rank, bound, parameters" not in pages["estimate"]


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
    assert len(layout(events)["hessian: rank of the loss Hessian"]) == 3


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
