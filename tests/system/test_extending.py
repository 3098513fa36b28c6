"""CONTRIBUTING's examples, from outside the package: a layer, a loss, an estimator, a logger.

The code that is run is the text of CONTRIBUTING.md; here it is used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typer.testing import CliRunner

from lightning_hessrank import HessianRankMonitor, batch_bound, hessian_rank, rank_bound
from lightning_hessrank.cli import app
from lightning_hessrank.dashboard.images import image_sink
from lightning_hessrank.estimators.registry import ESTIMATORS, estimator
from lightning_hessrank.metrics import HessianRank
from tests.oracles import dense_hessian, symmetric_rank
from tests.system.conditions import Lit, batch, network
from tests.training import QUIET

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")
BLOCKS = dict(re.findall(r"<!-- run: (\w+) -->\n```python\n(.*?)^```$", TEXT, re.S | re.M))
LONGEST = 25
"""Lines that an addition may take."""


@pytest.fixture(scope="module")
def added() -> Iterator[dict[str, dict[str, Any]]]:
    """Namespaces of the blocks, each run once, as when a package that adds them is imported."""
    spaces: dict[str, dict[str, Any]] = {}
    for name, source in BLOCKS.items():
        spaces[name] = {"__name__": f"added_{name}"}
        exec(compile(source, f"CONTRIBUTING.md: {name}", "exec"), spaces[name])
    yield spaces
    del ESTIMATORS["singular-values"]  # other tests list the names


def test_there_is_one_of_each_and_it_is_short() -> None:
    assert set(BLOCKS) == {"layer", "loss", "estimator", "logger"}
    for source in BLOCKS.values():
        lines = [x for x in source.splitlines() if x and not x.startswith(("import", "from"))]
        assert len(lines) <= LONGEST


class Positionwise(nn.Module):
    """Two layers that are matrices at every place, a bottleneck between them, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.one = nn.Parameter(torch.randn(1, 4, generator=generator))
        self.two = nn.Parameter(torch.randn(3, 1, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.einsum("nct,mc->nmt", x, self.one)
        return torch.einsum("nct,mc->nmt", h, self.two).sum(-1)


@pytest.mark.usefixtures("added")
def test_a_layer() -> None:
    model = Positionwise()
    x, y = torch.randn(12, 4, 5), torch.randn(12, 3)
    rank = symmetric_rank(
        dense_hessian(Positionwise().double(), nn.functional.mse_loss, [(x.double(), y.double())])
    )
    for bound in (rank_bound(model, x[:1]), batch_bound(model, "mse", (x, y))):
        assert bound.is_theorem
        assert rank <= bound.total
        assert "counted in full" not in bound.reason
    assert hessian_rank(model, "mse", (x, y)).rank == rank


def test_a_loss(added: dict[str, dict[str, Any]]) -> None:
    loss_fn = added["loss"]["log_cosh_loss"]
    x, y = (t.double() for t in batch("plain"))
    hessian = dense_hessian(network("plain").double(), loss_fn, [(x, y)])
    expected = symmetric_rank(hessian)
    for given in ("log_cosh", "log_cosh_loss", loss_fn):
        model = network("plain")
        assert hessian_rank(model, given, (x, y)).rank == expected
        metric = HessianRank(model, given)
        metric.update(x, y)
        assert int(metric.compute()) == expected
        assert batch_bound(model, given, (x, y)).total >= expected
        assert rank_bound(model, x[:1], loss=given).total >= expected
    found = CliRunner().invoke(
        app,
        ["bound", 'tests.system.conditions:network("plain")', "--input", "4", "--loss", "log_cosh"],
    )
    assert found.exit_code == 0, found.output

    class Training(Lit):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return loss_fn(self.net(batch[0]), batch[1])

    record = monitored(Training("plain"))
    assert record["rank"] == expected
    assert "rank_outer" in record  # the loss was recognised, and with it the network's output


def monitored(module: pl.LightningModule, **options: Any) -> dict[str, Any]:
    """The first record of a monitor."""
    monitor = HessianRankMonitor(progress_bar=False, on_error="raise", **options)
    data = DataLoader([batch("plain")], batch_size=None)
    pl.Trainer(**QUIET, max_steps=1, callbacks=[monitor]).fit(module, data)
    return monitor.history[0]


@pytest.mark.filterwarnings("ignore:.*does not have many workers|.*number of training batches")
@pytest.mark.filterwarnings("ignore:.*LeafSpec")
def test_an_estimator(added: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    assert ESTIMATORS["singular-values"] is added["estimator"]["singular_value_rank"]
    pair, model = batch("plain"), network("plain")
    expected = hessian_rank(model, "mse", pair, method="dense").rank
    estimate = hessian_rank(model, "mse", pair, method="singular-values")
    assert (estimate.rank, estimate.method) == (expected, "singular-values")
    record = monitored(Lit("plain"), method="singular-values")
    assert (record["rank"], record["method"]) == (expected, "singular-values")
    with pytest.raises(ValueError, match=r"'lanczos', 'singular-values', got 'other'$"):
        hessian_rank(model, "mse", pair, method="other")

    trainer = pl.Trainer(**QUIET, max_steps=0)
    trainer.strategy.connect(Lit("plain"))
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    here = "tests.system.conditions"
    command = ["measure", f'{here}:Lit("plain")', "--checkpoints", str(tmp_path)]
    command += ["--data", f'{here}:batch("plain")', "--method", "singular-values"]
    found = CliRunner().invoke(app, command)
    assert found.exit_code == 0, found.output
    assert f" {expected} " in found.output


def test_a_name_is_given_once() -> None:
    for taken in ("auto", "dense"):
        with pytest.raises(ValueError, match=f"^there is a method '{taken}' already"):
            estimator(taken)


class Notebook:
    """Someone's logger."""

    def __init__(self) -> None:
        self.pages: list[tuple[str, object]] = []

    def add_page(self, title: str, figure: object) -> None:
        self.pages.append((title, figure))


@pytest.mark.usefixtures("added")
def test_a_logger() -> None:
    logger, figure = Notebook(), object()
    sink: Any = image_sink(logger)
    sink("hessian-figures/sorted", figure, 3)
    assert logger.pages == [("hessian-figures/sorted, step 3", figure)]
    assert image_sink(object()) is None
