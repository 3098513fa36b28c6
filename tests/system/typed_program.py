"""Every public name, used as its types say: ``mypy --strict`` checks this from outside."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lightning_hessrank import (
    BoundNotAvailableError,
    HessianRankMonitor,
    HessianRankWarning,
    RankBound,
    RankEstimate,
    batch_bound,
    hessian_rank,
    rank_bound,
    toeplitz_matrix,
)
from lightning_hessrank.dashboard import Dashboard
from lightning_hessrank.metrics import HessianRank


def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.mse_loss(outputs, targets)


def measured(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[float, tuple[float, float]]:
    estimate: RankEstimate = hessian_rank(model, loss_fn, data, method="dense", rtol=1e-3)
    figure: Figure = estimate.plot()
    figure.clear()
    return estimate.rank, estimate.interval


def bounded(model: nn.Module, data: tuple[Tensor, Tensor]) -> int:
    try:
        bound: RankBound = rank_bound(model, data[0], loss="mse", data=data[0])
    except BoundNotAvailableError:
        bound = batch_bound(model, "mse", data)
    names: list[str] = [layer.name for layer in bound.layers]
    return bound.total if names and bound.is_theorem else bound.num_parameters


def monitors() -> list[str]:
    monitor = HessianRankMonitor(every_n_steps=10, dashboard=Dashboard(figures=False))
    category: type[UserWarning] = HessianRankWarning
    return [str(record["rank"]) for record in monitor.history] + [category.__name__]


def by_metric(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    metric = HessianRank(model, loss_fn)
    metric.update(*data)
    return float(metric.compute())


if __name__ == "__main__":
    net, pair = nn.Linear(3, 2), (torch.eye(3), torch.zeros(3, 2))
    matrix: Tensor = toeplitz_matrix(nn.Conv1d(1, 1, 2), 4)
    assert matrix.shape == (3, 4)
    assert measured(net, pair)[0] == by_metric(net, pair) == 6
    assert bounded(net, pair) >= 6
    assert monitors() == ["HessianRankWarning"]
