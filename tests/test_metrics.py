"""The metric: equal to ``hessian_rank`` on the same data, and a full citizen of torchmetrics."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import matplotlib.pyplot as plt
import pytest
import pytorch_lightning as pl
import torch
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import Metric, MetricCollection, MinMaxMetric

from lightning_hessrank import hessian_rank
from lightning_hessrank.metrics import HessianRank
from lightning_hessrank.results import PARTS
from tests.metric_processes import accumulate, batches, mlp

# `6-5-4-3` without biases, MSE, enough data, by the closed form of arXiv 2106.16225:
# q = s = 3, M = 9: outer 3·(6+3-3) = 18; functional 2·3·9 + 2·3·3 - 3·9 = 45;
# total 18 + 45 + 3·(3-6) = 54, of p = 62.
CLOSED_FORM = {"total": 54, "outer": 18, "functional": 45}


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("max_rank", [None, 50])
def test_closed_form_from_ragged_batches(part: Any, max_rank: int | None) -> None:
    model = mlp(6, 5, 4, 3)
    metric = HessianRank(model, F.mse_loss, part=part, max_rank=max_rank)
    if part == "total" and max_rank is not None:
        metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, part=part, max_rank=53)
    for inputs, targets in batches(11, 30, 5):
        metric.update(inputs, targets)
    assert metric.compute() == CLOSED_FORM[part]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("rtol", [None, 1e-3])
def test_equals_hessian_rank(part: Any, rtol: float | None) -> None:
    model, data = mlp(6, 8, 3, act=nn.Tanh, bias=True), batches(7, 20, 13)
    metric = HessianRank(model, F.mse_loss, part=part, rtol=rtol)
    for pair in data:
        metric.update(*pair)
    value = metric.compute()
    expected = hessian_rank(model, F.mse_loss, data, part=part, rtol=rtol, method="dense")
    assert value == expected.rank
    assert metric.estimate is not None
    assert metric.estimate.eigenvalues is not None
    assert expected.eigenvalues is not None
    torch.testing.assert_close(metric.estimate.eigenvalues, expected.eigenvalues)
    assert metric.estimate.rtol == expected.rtol
    assert metric.estimate.rank_at(1e-2) == expected.rank_at(1e-2)


def test_ragged_batches_are_weighted_by_size() -> None:
    model, data = mlp(6, 4, 3), batches(4, 36)
    apart, whole = HessianRank(model, F.mse_loss), HessianRank(model, F.mse_loss)
    for pair in data:
        apart.update(*pair)
    whole.update(*(torch.cat(column) for column in zip(*data, strict=True)))
    torch.testing.assert_close(apart.curvature, whole.curvature, rtol=1e-12, atol=1e-12)
    assert apart.num_samples == whole.num_samples == 40


def test_single_precision_has_its_own_machine_precision() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, part="outer", dtype=torch.float32)
    metric.update(*batches(40)[0])
    assert metric.compute() == 18
    assert metric.estimate is not None
    assert metric.estimate.rtol == 62 * torch.finfo(torch.float32).eps


def test_full_sketch_is_reported_not_believed() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, max_rank=20)
    metric.update(*batches(40)[0])
    message = (
        "HessianRank is nan: the sketch of 28 columns came out full, so the rank is at least 28; "
        "pass a larger max_rank than 20, or None for the dense state"
    )
    with pytest.warns(RuntimeWarning) as caught:
        assert metric.compute().isnan()
    assert [str(w.message) for w in caught] == [message]


def test_sketch_without_a_gap_is_refused() -> None:
    metric = HessianRank(nn.Linear(60, 1, bias=False), F.mse_loss, max_rank=30)
    scale = 10.0 ** (-0.25 * torch.arange(60.0).double())  # eigenvalues fall by 3.2 each
    metric.update(torch.eye(60).double() * scale, torch.zeros(60, 1).double())
    with pytest.warns(RuntimeWarning, match="has no clear gap at the cut"):
        assert metric.compute().isnan()


def test_sketch_as_wide_as_the_matrix_is_dense() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, max_rank=60)
    assert metric.sketch_width is None
    assert metric.curvature.shape == (62, 62)
    assert HessianRank(mlp(6, 5, 4, 3), F.mse_loss, max_rank=50).curvature.shape == (58, 58)


# -- as a torchmetrics.Metric ------------------------------------------------------------------


def test_forward_gives_the_batch_and_adds_it() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, part="outer")
    first, second = batches(2, 30)
    assert metric(*first) == 2 * 3  # two samples, three outputs
    assert metric(*second) == 18
    assert metric.num_samples == 32
    assert metric.compute() == 18


def test_reset_forgets() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, part="outer")
    metric.update(*batches(30)[0])
    metric.reset()
    metric.update(*batches(2)[0])
    assert metric.compute() == 6


def test_clone_keeps_the_state_and_watches_the_same_model() -> None:
    model = mlp(6, 5, 4, 3)
    metric = HessianRank(model, F.mse_loss)
    metric.update(*batches(30)[0])
    cloned = metric.clone()
    assert cloned.model is model
    assert torch.equal(cloned.curvature, metric.curvature)
    cloned.reset()
    assert metric.num_samples == 30


def test_deep_copy_of_a_module_with_its_metric_stays_together() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(6, 5, 4, 3)
            self.rank = HessianRank(self.net, F.mse_loss)

    holder = Holder()
    copied = copy.deepcopy(holder)
    assert copied.rank.model is copied.net
    assert holder.rank.model is holder.net
    assert len(list(holder.parameters())) == 3
    assert set(holder.state_dict()) == {"net.0.weight", "net.2.weight", "net.4.weight"}


def test_pickling_copies_model_and_state() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss)
    metric.update(*batches(40)[0])
    loaded = pickle.loads(pickle.dumps(metric))
    assert loaded.compute() == CLOSED_FORM["total"]
    loaded.update(*batches(40)[0])
    assert loaded.num_samples == 80
    assert metric.num_samples == 40


def test_collection_keeps_sums_apart() -> None:
    """Both nets have the same weights at first; torchmetrics would let them share one sum."""
    live = mlp(6, 5, 4, 3)
    averaged = copy.deepcopy(live)
    collection = MetricCollection(
        {
            "live": HessianRank(live, F.mse_loss),
            "averaged": HessianRank(averaged, F.mse_loss),
            "outer": HessianRank(live, F.mse_loss, part="outer"),
        }
    )
    collection.update(*batches(40)[0])
    collection.reset()
    with torch.no_grad():
        for parameter in averaged.parameters():
            parameter[1:] = 0.0
    collection.update(*batches(40)[0])
    values = collection.compute()
    assert values["live"] == CLOSED_FORM["total"]
    assert values["outer"] == CLOSED_FORM["outer"]
    assert values["averaged"] == hessian_rank(averaged, F.mse_loss, batches(40)).rank < 54
    assert set(collection.clone(prefix="val_").compute()) == {
        "val_live",
        "val_averaged",
        "val_outer",
    }


def test_arithmetic_and_wrappers() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss)
    share = metric / 62
    share.update(*batches(40)[0])
    assert float(share.compute()) == pytest.approx(54 / 62)
    wrapped = MinMaxMetric(HessianRank(mlp(6, 5, 4, 3), F.mse_loss, part="outer"))
    assert wrapped(*batches(2)[0])["raw"] == 6


def test_plot_draws_the_values() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss, part="outer")
    values = [metric(*pair) for pair in batches(1, 2, 30)]
    figure, axes = metric.plot(values)
    assert list(axes.lines[0].get_ydata()) == [3, 6, 18]
    plt.close(figure)


def test_default_state_is_not_saved_but_can_be() -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss)
    metric.update(*batches(40)[0])
    assert metric.state_dict() == {}
    metric.persistent(True)
    other = HessianRank(metric.model, F.mse_loss)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    other._update_count = 1
    assert other.compute() == CLOSED_FORM["total"]


# -- the model -------------------------------------------------------------------------------------


def test_model_and_generators_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    before = copy.deepcopy(model.state_dict())
    random = torch.get_rng_state()
    metric = HessianRank(model, F.mse_loss, max_rank=10)
    metric.update(*batches(12)[0])
    assert model.training
    assert all(torch.equal(x, before[k]) for k, x in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_mode_of_the_model_counts() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.9), nn.Linear(4, 3))
    metric = HessianRank(model, F.mse_loss, part="outer")
    model.eval()
    evaluating = metric(*batches(5)[0])
    metric.reset()
    model.train()
    assert metric(*batches(5)[0]) < evaluating


def test_changed_weights_are_warned_of_once() -> None:
    model, (pair,) = mlp(6, 4, 3), batches(10)
    metric = HessianRank(model, F.mse_loss)
    metric.update(*pair)
    with torch.no_grad():
        model[0].weight += 1.0
    message = (
        "HessianRank: the model's weights changed since the first update, so that the sum mixes "
        "Hessians at different weights; call reset() whenever the model has changed, and update in "
        "validation_step rather than in training_step"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metric.update(*pair)
        metric.update(*pair)
    assert [str(w.message) for w in caught] == [message]
    metric.reset()
    metric.update(*pair)  # no warning, which would be an error here
    with torch.no_grad():
        model[0].weight += 1.0
    with pytest.warns(UserWarning, match="changed since the first update"):
        metric(*pair)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_works_where_validation_runs(context: Any) -> None:
    metric = HessianRank(mlp(6, 5, 4, 3), F.mse_loss)
    with context():
        metric.reset()
        metric.update(*(x * 1.0 for x in batches(40)[0]))
        assert metric.compute() == CLOSED_FORM["total"]
        metric.reset()
    metric.update(*batches(40)[0])
    assert metric.compute() == CLOSED_FORM["total"]


class Logged(pl.LightningModule):
    """Logs the metric as an object in validation, like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 5, 4, 3)
        self.rank = HessianRank(self.net, F.mse_loss)
        self.expected: list[float] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.rank.update(*batch)
        self.log("val_rank", self.rank)

    def on_validation_epoch_end(self) -> None:
        self.expected.append(hessian_rank(self.net, F.mse_loss, batches(3, 2)).rank)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(*sizes: int) -> DataLoader[Any]:
    return DataLoader(batches(*sizes), batch_size=None)  # type: ignore[arg-type]


def test_logged_as_an_object_by_a_trainer(tmp_path: Any) -> None:
    module, seen = Logged(), []

    class Watch(pl.Callback):
        def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            seen.append(float(trainer.callback_metrics["val_rank"]))

    trainer = pl.Trainer(
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        num_sanity_val_steps=0,
        callbacks=[Watch()],
        default_root_dir=tmp_path,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")
        warnings.filterwarnings("ignore", ".*LeafSpec.*")
        trainer.fit(module, loader(8), loader(3, 2))
    assert seen == module.expected
    assert len(seen) == 2


# -- several processes -----------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_add_up(tmp_path: Any) -> None:
    mp.spawn(accumulate, (str(tmp_path),), nprocs=2)
    outcome = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    union = hessian_rank(mlp(6, 5, 4, 3), F.mse_loss, batches(11, 30, 5))
    assert union.eigenvalues is not None
    for rank, local_samples in ((0, 11), (1, 35)):
        values, eigenvalues, samples = outcome[rank]
        assert values == [CLOSED_FORM["total"], CLOSED_FORM["functional"]]
        assert samples == local_samples  # unsynced again after compute
        torch.testing.assert_close(torch.tensor(eigenvalues).double(), union.eigenvalues)


# -- refusals --------------------------------------------------------------------------------------


def test_no_data_is_nan() -> None:
    metric = HessianRank(mlp(6, 4, 3), F.mse_loss)
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan()


def test_non_finite_loss_is_nan_and_said() -> None:
    metric = HessianRank(mlp(6, 4, 3), F.mse_loss)
    inputs, targets = batches(3)[0]
    inputs[0, 0] = torch.inf
    with pytest.warns(RuntimeWarning) as caught:
        metric.update(inputs, targets)
    assert str(caught[0].message) == (
        "HessianRank will be nan: the network's output is not finite (3 of 9 values): look at the "
        "weights and the inputs"
    )
    metric.update(*batches(3)[0])
    assert metric.compute().isnan()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"part": "inner"},
            ValueError,
            "part must be one of 'total', 'outer', 'functional', got 'inner'",
        ),
        (
            {"max_rank": 0},
            ValueError,
            "max_rank must be a positive integer or None, got 0",
        ),
        (
            {"max_rank": 2.5},
            TypeError,
            "max_rank must be a positive integer or None, got 2.5",
        ),
        (
            {"max_rank": 10, "rtol": 0.01},
            ValueError,
            "rtol=0.01 needs eigenvalues, which a sketch (max_rank=10) does not keep: it tells the "
            "rank at machine precision; leave out one of the two",
        ),
        (
            {"loss_fn": 3},
            TypeError,
            "loss_fn must be a function loss_fn(outputs, targets) -> scalar, or the name of a loss "
            "such as 'mse', got 3",
        ),
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, got int"),
        (
            {"model": nn.ReLU()},
            ValueError,
            "ReLU has no parameters that require gradients, so there is no Hessian to measure; "
            "unfreeze some",
        ),
    ],
)
def test_errors_say_what_to_do(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error) as caught:
        HessianRank(**{"model": mlp(6, 4, 3), "loss_fn": F.mse_loss, **arguments})
    assert str(caught.value) == message


def test_is_a_metric() -> None:
    assert isinstance(HessianRank(mlp(6, 4, 3), F.mse_loss), Metric)
