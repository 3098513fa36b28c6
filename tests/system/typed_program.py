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
from lightning_hessrank.dashboard.images import ImageSink, image_logger
from lightning_hessrank.estimators import Request, estimator
from lightning_hessrank.hessian.operator import SymmetricOperator
from lightning_hessrank.metrics import HessianRank
from lightning_hessrank.network.layers import Layer, LayerCall, Slices, channels, reads
from lightning_hessrank.network.losses import add_loss
from lightning_hessrank.tolerance import numerical_rank


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


@add_loss
def log_cosh(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).cosh().log().mean()


@estimator("by-svd")
def by_svd(operator: SymmetricOperator, request: Request) -> RankEstimate:
    matrix = operator.matmat(torch.eye(operator.dim, dtype=operator.dtype))
    found = numerical_rank(torch.linalg.svdvals(matrix), request.rtol)
    return RankEstimate(
        rank=found.rank,
        std_error=0.0,
        rtol=found.rtol,
        tolerance=found.tolerance,
        gap=found.gap,
        method="by-svd",
        num_parameters=operator.dim,
        num_products=operator.dim,
        seconds=0.0,
        part=request.part,
    )


@reads("einsum")
def positionwise(call: LayerCall) -> Layer | None:
    if call.args[0] != "nct,mc->nmt":
        return None
    _, a, weight = call.args
    m, c = weight.shape
    return Layer(
        a,
        weight,
        None,
        lambda a, w: call.func("nct,mc->nmt", a, w),
        Slices(1, m, c, 1),
        **channels(a, -2),
    )


@image_logger
def pages(logger: object) -> ImageSink | None:
    add_page = getattr(logger, "add_page", None)
    return None if add_page is None else lambda tag, figure, step: add_page(tag, figure)


if __name__ == "__main__":
    net, pair = nn.Linear(3, 2), (torch.eye(3), torch.zeros(3, 2))
    matrix: Tensor = toeplitz_matrix(nn.Conv1d(1, 1, 2), 4)
    assert matrix.shape == (3, 4)
    assert measured(net, pair)[0] == by_metric(net, pair) == 6
    assert bounded(net, pair) >= 6
    assert hessian_rank(net, log_cosh, [pair], method="by-svd").rank == 6
    assert monitors() == ["HessianRankWarning"]
