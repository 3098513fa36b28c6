"""What the monitor says and logs besides the rank: initial statistics, layers, metrics."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lightning_hessrank import HessianRankMonitor, measure
from lightning_hessrank.monitor import bounds
from lightning_hessrank.monitor.callback import HessianRankWarning
from lightning_hessrank.monitor.log import logger as console
from lightning_hessrank.results import RankBound
from lightning_hessrank.tolerance import numerical_rank
from tests.oracles import dense_hessian
from tests.training import QUIET, TRAINS, loader, memory_logger, plain_module

pytestmark = TRAINS


def fit(monitor: HessianRankMonitor, net: nn.Module, **setup: Any) -> pl.Trainer:
    trainer = pl.Trainer(**{**QUIET, "max_epochs": 2, "callbacks": [monitor], **setup})
    trainer.fit(plain_module(pl, net=net), loader())
    return trainer


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Any:
    monkeypatch.setattr(console, "propagate", True)
    caplog.set_level(logging.INFO, logger=console.name)
    return caplog


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_initial_statistics_of_batch_norm_are_said_once(mode: Any, said: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))
    fit(HessianRankMonitor(method="dense", module_mode=mode, on_error="raise"), net)
    about = [x for x in said.messages if "batch norm" in x]
    assert about == (
        []
        if mode == "train"
        else [
            "hessian: batch norm is measured in evaluation mode, at step 0 with the initial values "
            "of its running statistics (module_mode='train' uses those of the batch)"
        ]
    )


def test_choice_of_the_method_is_said_once_and_before_it_starts(said: Any, monkeypatch) -> None:
    heard: list[list[str]] = []
    parts = measure.dense_parts

    def listening(*args: Any, **kwargs: Any) -> Any:
        heard.append([x for x in said.messages if x.startswith("hessian: dense: exact, ")])
        return parts(*args, **kwargs)

    monkeypatch.setattr(measure, "dense_parts", listening)
    fit(HessianRankMonitor(on_error="raise"), nn.Linear(4, 3))
    assert [len(messages) for messages in heard] == [1, 1, 1]


def test_layers_have_the_ranks_of_their_diagonal_blocks() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    inputs, labels = next(iter(loader(6)))
    inputs = inputs.double()
    weights = {name: x.detach().clone() for name, x in net.named_parameters()}
    monitor = HessianRankMonitor(method="dense", layers=True, on_error="raise")
    fit(monitor, net, precision="64-true", max_epochs=1)
    layers = monitor.history[0]["layers"]
    assert list(layers) == ["net.0", "net.2"]
    for name, found in layers.items():
        own = {k: v for k, v in weights.items() if f"net.{k}".startswith(name)}
        sizes = [x.numel() for x in own.values()]

        def loss(flat: torch.Tensor, own: Any = own, sizes: Any = sizes) -> torch.Tensor:
            moved = {
                key: part.reshape(x.shape)
                for (key, x), part in zip(own.items(), flat.split(sizes), strict=True)
            }
            outputs = torch.func.functional_call(net, {**weights, **moved}, (inputs,))
            return nn.functional.cross_entropy(outputs, labels)

        flat = torch.cat([x.flatten() for x in own.values()])
        block = torch.autograd.functional.hessian(loss, flat)
        assert isinstance(block, torch.Tensor)
        assert found["rank"] == numerical_rank(torch.linalg.eigvalsh(block)).rank
        assert found["num_parameters"] == sum(sizes)


class Attentive(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.stack([x, x.roll(1, 1), x.square()], 1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


@pytest.mark.parametrize(("method", "rtol"), [("dense", None), ("lanczos", 0.1)])
def test_fine_layers_are_blocks_of_the_dense_hessian(method: str, rtol: float | None) -> None:
    torch.manual_seed(0)
    net = Attentive().double()
    inputs, labels = next(iter(loader(6)))
    with sdpa_kernel(SDPBackend.MATH):
        full = dense_hessian(net, nn.functional.cross_entropy, [(inputs.double(), labels)])
    logger = memory_logger(pl)
    monitor = HessianRankMonitor(
        method=method, rtol=rtol, layers="fine", data=(inputs, labels), on_error="raise"
    )
    fit(monitor, net, precision="64-true", max_epochs=1, logger=logger)
    record = monitor.history[0]
    # in_proj_weight, in_proj_bias, out_proj.weight, out_proj.bias, head.weight, head.bias
    thirds = {
        part: [*range(16 * i, 16 * i + 16), *range(48 + 4 * i, 52 + 4 * i)]
        for i, part in enumerate(("query", "key", "value"))
    }
    rows = {f"net.attention.{part}": x for part, x in thirds.items()}
    rows |= {"net.attention.out_proj": [*range(60, 80)], "net.head": [*range(80, 95)]}
    assert list(record["layers"]) == list(rows)
    for name, found in record["layers"].items():
        block = full[rows[name]][:, rows[name]]
        values = torch.linalg.eigvalsh(block)
        assert found["num_parameters"] == len(rows[name])
        if method == "dense":
            assert found["rank"] == numerical_rank(values).rank
    norms = record["block_norms"]
    assert sum(map(len, norms.values())) == 10
    for a, others in norms.items():
        for b, norm in others.items():
            true = float(full[rows[a]][:, rows[b]].norm())
            assert norm["norm"] == pytest.approx(
                true, abs=1e-10 if method == "dense" else 5 * norm["std_error"]
            )
            assert (norm["std_error"] == 0) == (method == "dense")
    tag = "hessian-layers/norm/net.attention.query/net.attention.key"
    logged = next(x for _, x in logger.logged if tag in x)
    assert logged[tag] == norms["net.attention.query"]["net.attention.key"]["norm"]


def test_metrics_reach_trainer_loggers_and_progress_bar() -> None:
    logger = memory_logger(pl)
    monitor = HessianRankMonitor(method="dense", name="curvature", prog_bar=True, on_error="raise")
    trainer = fit(monitor, nn.Linear(4, 3), logger=logger)
    rank = monitor.history[-1]["rank"]
    assert trainer.callback_metrics["curvature/rank"] == rank
    assert trainer.progress_bar_metrics["curvature/rank"] == rank
    logged = [(step, x["curvature/rank"]) for step, x in logger.logged if "curvature/rank" in x]
    assert logged == [(record["step"], record["rank"]) for record in monitor.history]


def test_an_estimate_does_not_pose_as_the_rank() -> None:
    monitor = HessianRankMonitor(
        method="lanczos", layers=True, prog_bar=True, progress_bar=False, on_error="raise"
    )
    trainer = fit(monitor, nn.Linear(4, 3), max_epochs=1)
    rank = monitor.history[-1]["rank"]
    assert trainer.progress_bar_metrics == {"hessian-estimate/rank": rank}
    assert trainer.callback_metrics["hessian-estimate/rank"] == rank
    exact = ("hessian/rank", "hessian-layers/rank")
    assert not [name for name in trainer.callback_metrics if name.startswith(exact)]
    assert "hessian-layers/estimate/net" in trainer.callback_metrics


class Diverge(pl.Callback):
    """Lets the weights be nan in the middle epoch of three."""

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        with torch.no_grad():
            value = {0: None, 1: math.nan, 2: 0.1}[trainer.current_epoch]
            if value is not None:
                for parameter in pl_module.parameters():
                    parameter.fill_(value)
                trainer.optimizers[0].state.clear()


class Watch(pl.Callback):
    """Keeps what other callbacks can monitor after each epoch."""

    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append({k: float(v) for k, v in trainer.callback_metrics.items()})


@pytest.mark.filterwarnings("ignore::lightning_hessrank.monitor.callback.HessianRankWarning")
def test_no_old_value_stands_for_a_measurement_that_is_nan() -> None:
    monitor, watch = HessianRankMonitor(method="dense"), Watch()
    fit(monitor, nn.Linear(4, 3), max_epochs=3, callbacks=[Diverge(), monitor, watch])
    before, during, after = watch.seen
    finite = {name for name, value in before.items() if math.isfinite(value)}
    assert {"hessian/rank_outer", "hessian/batch_bound", "hessian-tolerance/rank_1e-3"} <= finite
    assert {"hessian-spectrum/lambda_max", "hessian-spectrum/gap"} <= finite
    known = {"hessian-bound/", "hessian-data/samples", "hessian-time/"}
    assert {name for name in finite if math.isfinite(during[name])} == {
        name for name in finite if any(name.startswith(group) for group in known)
    }
    assert during.keys() == before.keys() <= after.keys()
    assert math.isfinite(after["hessian/rank_outer"])


def test_skipped_measurements_can_be_monitored() -> None:
    monitor = HessianRankMonitor(method="dense", max_overhead=1e-9, on_error="raise")
    trainer = fit(monitor, nn.Linear(4, 3))
    assert len(monitor.history) == 1
    assert trainer.callback_metrics["hessian-time/skipped"] == 2


def test_a_bound_that_is_contradicted_is_no_theorem(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = RankBound(3, 2, 1, (), 43, "patch", is_theorem=True, reason="It is said to hold.")
    monkeypatch.setattr(bounds, "reference_bound", lambda subject, max_seconds: wrong)
    net = nn.Sequential(nn.Linear(4, 5, bias=False), nn.Linear(5, 3, bias=False))
    monitor = HessianRankMonitor(method="dense")
    expected = (
        r"the measured rank (\d+) exceeds the bound 3 that was to be a theorem, so one of them is "
        "wrong; please report this network to lightning-hessrank"
    )
    with pytest.warns(HessianRankWarning, match=expected) as caught:
        fit(monitor, net)
    assert len([x for x in caught if x.category is HessianRankWarning]) == 1
    assert [x["bound_is_theorem"] for x in monitor.history] == [False] * 3
    assert all(x["rank"] > x["bound"] == 3 for x in monitor.history)
