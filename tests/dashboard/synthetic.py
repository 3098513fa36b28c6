"""Measurements made up for the tests: right in form, with spectra like those of real networks."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lightning_hessrank.api import nan_estimate
from lightning_hessrank.estimators.dense import spectrum_estimate
from lightning_hessrank.results import (
    LayerBound,
    LayerRank,
    Measurement,
    RankBound,
    RankEstimate,
)


def spectrum(
    p: int, rank: int, *, seed: int = 0, decades: float = 6.0, noise: float = 1e-16
) -> Tensor:
    """Eigenvalues of both signs: ``rank`` over some decades, the rest at rounding error."""
    generator = torch.Generator().manual_seed(seed)
    size = 10 ** (-decades * torch.linspace(0, 1, rank, dtype=torch.float64) ** 0.7)
    rest = noise * torch.rand(p - rank, generator=generator, dtype=torch.float64)
    sign = (torch.rand(p, generator=generator) < 0.6).double() * 2 - 1
    return (torch.cat([size, rest]) * sign).sort().values


def dense(p: int = 1210, rank: int = 747, *, part: Any = "total", **kwargs: Any) -> RankEstimate:
    return spectrum_estimate(
        spectrum(p, rank, **kwargs), rtol=None, part=part, num_products=p, seconds=1.5
    )


@cache
def huge() -> RankEstimate:
    """Ten million parameters, made once; sorting the eigenvalues is what takes time."""
    p, rank = 10_000_000, 20_000
    eigenvalues = spectrum(p, rank)
    few = dense(1000, 500)
    rtol = p * torch.finfo(torch.float64).eps
    largest = float(eigenvalues.abs().max())
    return replace(
        few,
        rank=rank,
        rtol=rtol,
        tolerance=rtol * largest,
        num_parameters=p,
        eigenvalues=eigenvalues,
    )


def sketch(p: int = 21_888, rank: int = 2016) -> RankEstimate:
    return RankEstimate(
        rank=rank,
        std_error=0.0,
        rtol=p * torch.finfo(torch.float64).eps,
        tolerance=3e-12,
        gap=1e9,
        method="sketch",
        num_parameters=p,
        num_products=rank + 10,
        seconds=6.0,
        counts={1e-1: 6, 1e-2: 60, 1e-3: 400, 1e-4: 1200, 1e-5: 1900, 1e-6: 2010},
    )


def lanczos(p: int = 11_000_000, rank: float = 95.4, std_error: float = 2.1) -> RankEstimate:
    return RankEstimate(
        rank=rank,
        std_error=std_error,
        rtol=1e-3,
        tolerance=2.5e-3,
        gap=None,
        method="lanczos",
        num_parameters=p,
        num_products=800,
        seconds=60.0,
        counts={1e-1: 5.2, 1e-2: 26.1, 1e-3: rank},
        num_probes=8,
    )


def bound(
    total: int = 765,
    p: int = 1210,
    *,
    is_theorem: bool = False,
    layers: int = 2,
    kind: Any = "closed-form",
) -> RankBound:
    reason = (
        "every activation is linear, so the bound holds for this network"
        if is_theorem
        else "the network has activations (ReLU): this is the bound of its linear surrogate"
    )
    parts = [
        LayerBound(f"net.{2 * i}", p // layers, max(1, total // (3 * layers)))
        for i in range(layers)
    ]
    batch = kind == "batch"
    return RankBound(
        total=total,
        outer=None if batch else total * 2 // 3,
        functional=None if batch else total - total // 3,
        layers=tuple(parts),
        num_parameters=p,
        kind=kind,
        is_theorem=is_theorem,
        reason=reason,
    )


def layer_ranks(
    layers: int = 2, *, fill: float = 0.8, bounded: bool = True
) -> dict[str, LayerRank]:
    found = {}
    for i in range(layers):
        parameters = 90 * (i + 1)
        limit = max(1, parameters * 7 // 10)
        share = fill * (1 - 0.5 * i / layers)
        found[f"net.{2 * i}"] = LayerRank(
            round(limit * share), parameters, limit if bounded else None
        )
    return found


def measurement(
    step: int = 0, *, layers: int = 2, stochastic: bool = False, **changes: Any
) -> Measurement:
    p = 1210
    fading = max(0.1, 1 - step / 2000)
    values: dict[str, Any] = {
        "step": step,
        "epoch": step // 15,
        "total": lanczos() if stochastic else dense(p, int(747 * fading), seed=step),
        "bound": bound(is_theorem=False),
        "layers": layer_ranks(layers, fill=0.9 * fading) if layers else {},
        "loss": 2.3 * fading,
        "seconds": 2.0,
        "overhead": 0.04,
    }
    if not stochastic:
        values["outer"] = dense(p, int(520 * fading), part="outer", seed=step)
        values["functional"] = dense(p, int(243 * fading), part="functional", seed=step)
        values["batch_bound"] = bound(1100, p, is_theorem=True, kind="batch")
    return Measurement(**{**values, **changes})


def failed(step: int = 0) -> Measurement:
    """A loss that was not finite."""
    return Measurement(step=step, epoch=0, total=nan_estimate(1210), bound=bound())


def run(
    steps: int = 6, every: int = 15, **kwargs: Any
) -> list[tuple[Measurement, list[dict[str, Any]]]]:
    """Measurements of a run, each with the history up to it."""
    history: list[dict[str, Any]] = []
    found = []
    for i in range(steps):
        one = measurement(i * every, **kwargs)
        history.append(one.record())
        found.append((one, list(history)))
    return found
