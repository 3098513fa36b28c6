"""Runs in which something changes: trainable parameters, losses, weights without a step, copies."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import (
    BackboneFinetuning,
    Callback,
    ModelPruning,
    StochasticWeightAveraging,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hessrank import HessianRankMonitor, hessian_rank, rank_bound
from lightning_hessrank.monitor.callback import HessianRankWarning
from tests.training import ADVICE, QUIET

pytestmark = [pytest.mark.filterwarnings(f"ignore:{advice}") for advice in ADVICE]

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
Y = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))


class Linear(pl.LightningModule):
    """A linear network of two layers, or with an activation between."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.backbone, self.head = nn.Linear(5, 4, bias=False), nn.Linear(4, 3, bias=False)
        self.between = between or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self.backbone(x)))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def fit(
    module: pl.LightningModule, callbacks: list[Any], epochs: int = 4, **options: Any
) -> list[str]:
    """Train, and return what monitors said."""
    loader: Any = DataLoader(TensorDataset(X, Y), 40)
    trainer = pl.Trainer(**{**QUIET, "max_epochs": epochs, "callbacks": callbacks, **options})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, loader)
    return [str(w.message) for w in caught if w.category is HessianRankWarning]


def test_bound_and_layers_follow_the_trainable_parameters() -> None:
    net, monitor = Linear(), HessianRankMonitor(layers=True, on_error="raise")
    said = fit(net, [BackboneFinetuning(unfreeze_backbone_at_epoch=2), monitor])
    assert said == [
        "HessianRankMonitor: at step 3 the function that is measured has changed: the trainable "
        "parameters (12 before, 32 now). Ranks, layers, bound and method follow; ranks before and "
        "after are not of one Hessian"
    ]
    frozen = hessian_rank(
        nn.Sequential(net.backbone.requires_grad_(False), net.head), F.mse_loss, (X, Y)
    )
    net.backbone.requires_grad_(True)
    right = rank_bound(nn.Sequential(net.backbone, net.head), X, data=X)
    assert [x["num_parameters"] for x in monitor.history] == [12, 12, 12, 32, 32]
    assert [x["rank"] for x in monitor.history[:3]] == [frozen.rank] * 3 == [12] * 3
    assert monitor.history[-1]["rank"] == monitor.history[-1]["bound"] == right.total == 30
    assert all(x["bound_is_theorem"] for x in monitor.history)
    assert [list(x["layers"]) for x in monitor.history] == [["head"]] * 3 + [
        ["backbone", "head"]
    ] * 2


class Freezes(Callback):
    """Freezes, or adapts, a layer after the second epoch."""

    def __init__(self, change: Callable[[Linear], object]) -> None:
        self.change = change

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.current_epoch == 2:
            self.change(pl_module)


class LowRank(nn.Module):
    """LoRA: a frozen layer, plus a product of two small ones."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 1, bias=False)
        self.up = nn.Linear(1, layer.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(x))


def adapt(net: Linear) -> None:
    torch.manual_seed(3)
    net.backbone = LowRank(net.backbone)


@pytest.mark.parametrize(
    ("change", "after"),
    [(lambda net: net.head.requires_grad_(False), 20), (adapt, 12 + 9)],
    ids=["freezing", "LoRA"],
)
def test_another_set_of_parameters_is_measured_from_there_on(change: Any, after: int) -> None:
    net, monitor = Linear(nn.Tanh()), HessianRankMonitor(on_error="raise")
    (said,) = fit(net, [Freezes(change), monitor])
    assert f"the trainable parameters (32 before, {after} now)" in said
    assert [x["num_parameters"] for x in monitor.history] == [32, 32, 32, after, after]
    right = hessian_rank(copy.deepcopy(net).cpu(), F.mse_loss, (X, Y))
    assert monitor.history[-1]["rank"] == right.rank


def test_pruning_is_noticed() -> None:
    pruning = ModelPruning(
        "l1_unstructured",
        amount=lambda epoch: 0.5 if epoch == 1 else None,
        parameter_names=["weight"],
        use_lottery_ticket_hypothesis=False,
        make_pruning_permanent=False,
    )
    monitor = HessianRankMonitor(on_error="raise")
    said = fit(Linear(), [pruning, monitor], epochs=3)
    assert any("the trainable parameters (32 before, 16 now)" in x for x in said)
    assert monitor.history[0]["rank"] == 30
    assert monitor.history[-1]["rank"] <= 16


class Causal(Linear):
    """A mask of attention, beside a parameter of its name, hides more from the second epoch on."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.Parameter(torch.randn(4, 4))
        self.register_buffer("attention_mask", torch.ones(4, 4).tril())

    def forward(self, x: Tensor) -> Tensor:
        if self.current_epoch >= 1:
            self.attention_mask[2:] = 0
        return self.head(self.backbone(x) @ (self.attention * self.attention_mask))


def test_a_mask_that_prunes_nothing_changes_no_parameters() -> None:
    monitor = HessianRankMonitor(on_error="raise")
    assert not [x for x in fit(Causal(), [monitor], epochs=3) if "has changed" in x]
    assert {x["num_parameters"] for x in monitor.history} == {48}


class TrainsOnly(Linear):
    """Slow, and made for training mode only."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        time.sleep(0.02)
        if not self.training:
            raise RuntimeError("no targets")
        return super().training_step(batch, batch_idx)


def test_a_slow_step_that_fails_in_evaluation_mode_says_what_helps() -> None:
    monitor = HessianRankMonitor(max_seconds=1.0)
    said = fit(TrainsOnly(), [monitor], epochs=1)
    assert any("runs in training mode, but not in evaluation mode" in x for x in said)
    assert any("module_mode='train'" in x for x in said)


class Warms(Linear):
    """Another loss from the second epoch on."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.current_epoch >= 1:
            loss = loss + F.l1_loss(self.backbone(batch[0]), torch.zeros(40, 4))
        return loss


def test_another_loss_is_noticed() -> None:
    monitor = HessianRankMonitor(on_error="raise")
    said = fit(Warms(), [monitor], epochs=3)
    assert [x for x in said if "has changed" in x] == [
        "HessianRankMonitor: at step 2 the function that is measured has changed: the losses that "
        "its outputs enter (mse of 2-d output before, l1_loss of 2-d output + mse of 2-d output "
        "now). Ranks, layers, bound and method follow; ranks before and after are not of one "
        "Hessian"
    ]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_nothing_is_said_where_nothing_changes(mode: Any) -> None:
    between = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Tanh())
    assert fit(Linear(between), [HessianRankMonitor(module_mode=mode, on_error="raise")]) == []


def stochastic_average() -> Callback:
    return StochasticWeightAveraging(swa_lrs=0.2, swa_epoch_start=2)


def moving_average() -> Callback:
    if not hasattr(pl.callbacks, "WeightAveraging"):
        pytest.skip("this version of Lightning has none")
    return pl.callbacks.WeightAveraging()


@pytest.mark.parametrize("first", [True, False], ids=["monitor first", "monitor last"])
@pytest.mark.parametrize("averaging", [stochastic_average, moving_average], ids=["SWA", "EMA"])
def test_the_last_measurement_is_of_the_weights_that_the_run_ends_with(
    averaging: Callable[[], Callback], first: bool
) -> None:
    net = Linear(nn.Tanh())
    monitor = HessianRankMonitor(data=(X, Y), on_error="raise")
    fit(net, [monitor, averaging()] if first else [averaging(), monitor])
    with torch.no_grad():
        loss = float(F.mse_loss(copy.deepcopy(net).double()(X.double()), Y.double()))
    assert monitor.history[-1]["loss"] == pytest.approx(loss, abs=1e-12)
    assert [x["step"] for x in monitor.history][-2:] == [4, 4]


def test_the_same_weights_are_measured_once() -> None:
    monitor = HessianRankMonitor(on_error="raise")
    fit(Linear(nn.BatchNorm1d(4)), [monitor])
    assert [x["step"] for x in monitor.history] == [0, 1, 2, 3, 4]


def test_weights_set_by_the_module_at_the_end_are_measured() -> None:
    class Rounds(Linear):
        def on_train_end(self) -> None:
            with torch.no_grad():
                self.head.weight.zero_()

    monitor = HessianRankMonitor(on_error="raise")
    fit(Rounds(), [monitor], epochs=1)
    assert [x["step"] for x in monitor.history] == [0, 1, 1]
    assert monitor.history[-1]["loss"] == pytest.approx(
        Y.double().square().mean().item(), rel=1e-12
    )


def test_a_monitor_shows_the_history_of_its_copy() -> None:
    """Frameworks copy the callbacks that they are given."""
    monitor = HessianRankMonitor(on_error="raise")
    config = {"callbacks": [monitor]}
    used = copy.deepcopy(copy.deepcopy(config))["callbacks"]
    assert used[0] is not monitor
    fit(Linear(), used, epochs=1)
    assert [x["step"] for x in monitor.history] == [0, 1]
    assert monitor.history == used[0].history
    again = copy.deepcopy(config)["callbacks"]
    fit(Linear(), again, epochs=2)
    assert [x["step"] for x in monitor.history] == [0, 1, 2]
    assert [x["step"] for x in used[0].history] == [0, 1]
    fit(Linear(), [monitor], epochs=3)
    assert [x["step"] for x in monitor.history] == [0, 1, 2, 3]


class Shaped(Linear):
    """Knows how many samples a batch has, in training mode or always."""

    always = True

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self(batch[0])
        if self.always or self.training:
            output = output.reshape(40, 3)
        return F.mse_loss(output, batch[1])


class ShapedInTraining(Shaped):
    always = False


def test_a_step_that_fails_on_fewer_samples_has_them_all() -> None:
    monitor = HessianRankMonitor(max_samples=7)
    said = fit(Shaped(), [monitor], epochs=1)
    assert "the reference batch is taken whole, not cut to max_samples=7: the step fails" in said[0]
    assert [x["num_samples"] for x in monitor.history] == [40, 40]


def test_a_step_that_fails_on_fewer_samples_names_what_helps() -> None:
    expected = (
        "the step fails on 7 samples cut out of a batch (RuntimeError: shape '[40, 3]' is invalid "
        "for input of size 21); max_samples=None takes batches whole"
    )
    monitor = HessianRankMonitor(max_samples=7, module_mode="train")
    said = fit(ShapedInTraining(), [monitor], epochs=1)
    assert expected in said[0]
    monitor = HessianRankMonitor(max_samples=None, module_mode="train", on_error="raise")
    fit(ShapedInTraining(), [monitor], epochs=1)
    assert len(monitor.history) == 2
