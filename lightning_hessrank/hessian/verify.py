"""Doubts about a loss function, settled before its numbers count."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_hessrank.hessian.function import LossFunction
from lightning_hessrank.hessian.operator import multiply_in_blocks
from lightning_hessrank.hessian.parts import LossCurvature
from lightning_hessrank.network.autograd import graph_nodes
from lightning_hessrank.results import NonFiniteError

#: Step sizes relative to the size of the parameters, the most promising first. Small ones lose
#: digits to rounding, large ones cross kinks (ReLU); a correct product agrees at one of them.
STEPS = (1e-7, 1e-6, 1e-8, 1e-5, 1e-9, 1e-4, 1e-3)
#: Relative disagreement up to which a finite difference confirms a product.
AGREEMENT = 1e-4
#: Disagreement of ``vᵀHw`` and ``wᵀHv`` that rounding does not explain, in eps of ``‖Hv‖‖w‖``.
#: Rounding leaves some 1 to 100; rows that are wrong by a factor leave ``1 / (eps √p)``, about.
ASYMMETRY = 1e5
#: Share of a product beyond which the parts do not add up to the whole. Rounding leaves some 1e-14.
SPLIT_TOLERANCE = 1e-9


_MISSING = re.compile(r"derivative for '?(?:aten::)?(?P<name>\w+)'? is not implemented")


class WrongProductError(ArithmeticError):
    """Hessian-vector products of this loss are not those of a Hessian."""


class NoSecondDerivativeError(NotImplementedError):
    """An operation of the step cannot be differentiated twice."""


@contextmanager
def missing_derivatives_named() -> Iterator[None]:
    """Turn what PyTorch says about a missing second derivative into what to do about it.

    Raises:
        NoSecondDerivativeError: names the operation.
    """
    try:
        yield
    except RuntimeError as error:  # NotImplementedError is one too
        found = _MISSING.search(str(error))
        if found is None:
            raise
        operation = found["name"].strip("_").removesuffix("_backward")
        raise NoSecondDerivativeError(
            f"{operation} has no second derivative in PyTorch, so that the Hessian of this step "
            "cannot be computed; replace it in the module, or pass loss_fn=... that avoids it"
        ) from error


def check_product(function: LossFunction, *, max_bytes: int | None = None, seed: int = 0) -> None:
    """Check that products are symmetric, and the derivative of the gradient.

    ``vᵀHw = wᵀHv`` tells a gradient that is the derivative of something from one that is not: an
    embedding that scales it by the frequency of a word, a logarithm clamped in one direction only.
    Differences of the gradient tell a wrong second derivative from a right one.

    The comparison happens next to the live weights, at a random point some 1e-3 away: exactly at
    them a ReLU may sit on its kink (zero inputs and a bias initialised to zero), where no step size
    agrees although nothing is wrong, and a layer initialised to zero hides what is wrong behind it.
    Costs two products and one gradient, if that confirms them at the first step size, and holds the
    graph of one term at a time.

    Args:
        function: the loss; its parameters are moved, and put back.
        max_bytes: what graphs may hold in memory; ``None``: half of what is free.
        seed: of the point and the directions.

    Raises:
        WrongProductError: not symmetric, or no step size agrees; names the suspects.
        NonFiniteError: the loss is not finite there.
    """
    parameters = list(function.parameters.values())
    here = torch.cat([x.detach().flatten() for x in parameters])
    generator = torch.Generator().manual_seed(seed)
    size = max(float(here.norm()), 1e-3 * math.sqrt(len(here)))
    there = here + 1e-3 * size * _random_unit(here, generator)
    vectors = [size * _random_unit(here, generator) for _ in range(2)]
    with _moved(parameters, there):
        products, gradient = _products(function, torch.stack(vectors, dim=1), max_bytes)
    if not bool(torch.isfinite(products).all()):
        raise NonFiniteError("a Hessian-vector product is not finite at a finite loss")
    eps, steepness = torch.finfo(here.dtype).eps, float(gradient.norm())
    first, second = products.T
    difference = abs(float(vectors[1] @ first - vectors[0] @ second))
    scale = size * max(float(first.norm()), float(second.norm()))
    if difference > ASYMMETRY * eps * (scale + size * steepness):
        raise WrongProductError(_asymmetry(function, difference / scale))
    error = _disagreement_at_best(
        lambda steps: _gradient(function, parameters, there + steps * vectors[0]),
        gradient,
        first,
        noise=100 * eps * steepness,
    )
    if error is not None:
        raise WrongProductError(_disagreement(function, error))


def _disagreement_at_best(
    gradient_at: Callable[[float], Tensor], gradient: Tensor, product: Tensor, noise: float
) -> float | None:
    """Smallest relative error of a product beside differences of gradients; ``None``: confirmed.

    Args:
        gradient_at: the gradient so many steps along the direction.
        gradient: without a step.
        product: with the direction.
        noise: what rounding leaves of a gradient.
    """
    best = math.inf
    for step in STEPS:
        ahead, behind, width = gradient_at(step), gradient, step
        for sides in (1, 2):
            if sides == 2:
                behind, width = gradient_at(-step), 2 * step
            difference = (ahead - behind) / width
            scale = max(float(product.norm()), float(difference.norm()))
            error = float((product - difference).norm())
            if error <= AGREEMENT * scale + noise / step:
                return None
            best = min(best, error / scale)
    return best


def _products(
    function: LossFunction, vectors: Tensor, max_bytes: int | None
) -> tuple[Tensor, Tensor]:
    """Products with the Hessian, and the gradient; the graph of one term is held at a time."""
    products, gradient = torch.zeros_like(vectors), torch.zeros_like(vectors[:, 0])
    for term in function.terms:
        curvature = LossCurvature(LossFunction(function.parameters, [term]), max_bytes=max_bytes)
        products += multiply_in_blocks(curvature.operator(), vectors)
        gradient += curvature.gradient()
    return products, gradient


def unexplained_share(curvature: LossCurvature, *, seed: int = 0) -> float:
    """How much of the Hessian does not pass through the recognised outputs, in [0, 1].

    For ``ℓ(f(θ))`` the outer-product and functional parts add up to the whole. A term that reaches
    the loss on another way (a weight penalty, a loss function that was not recognised) is missing
    from both. Returns ``‖Hv − H_o v − H_f v‖ / (‖Hv‖ + ‖H_o v‖ + ‖H_f v‖)`` for one random ``v``.
    """
    generator = torch.Generator().manual_seed(seed)
    like = torch.empty(curvature.num_parameters, dtype=curvature.dtype, device=curvature.device)
    vector = _random_unit(like, generator).unsqueeze(1)
    total, outer, functional = (
        curvature.operator(part).matmat(vector) for part in ("total", "outer", "functional")
    )
    scale = sum(float(x.norm()) for x in (total, outer, functional))
    return float((total - outer - functional).norm()) / scale if scale > 0 else 0.0


def _random_unit(like: Tensor, generator: torch.Generator) -> Tensor:
    vector = torch.randn(len(like), dtype=like.dtype, generator=generator).to(like.device)
    return vector / vector.norm()


def _gradient(function: LossFunction, parameters: list[Tensor], where: Tensor) -> Tensor:
    total = torch.zeros_like(where)
    with _moved(parameters, where):
        for term in function.terms:
            loss = term.evaluate().loss
            grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
            total += term.weight * torch.cat([g.flatten() for g in grads])
    return total


@contextmanager
def _moved(parameters: list[Tensor], where: Tensor) -> Iterator[None]:
    kept = [x.data for x in parameters]
    pieces = where.split([x.numel() for x in parameters])
    try:
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.data = piece.reshape(parameter.shape)
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


def _disagreement(function: LossFunction, error: float) -> str:
    return (
        "a Hessian-vector product disagrees with finite differences of the gradient at every step "
        f"size (relative error {error:.1g} at best), so the second derivatives of this step are "
        f"wrong and no rank is given; {_blame(function)}. Pass loss_fn=... that avoids them"
    )


def _asymmetry(function: LossFunction, error: float) -> str:
    return (
        f"Hessian-vector products are not symmetric (vᵀHw and wᵀHv differ by {error:.1g} of "
        "‖Hv‖‖w‖), so what this step calls its gradient is not the derivative of its loss and no "
        f"rank is given; {_blame(function)}. Pass loss_fn=... that avoids them"
    )


def _blame(function: LossFunction) -> str:
    """Say which operations of the step are the suspects."""
    with torch.enable_grad():
        nodes = list(graph_nodes([term.evaluate().loss for term in function.terms]))
    custom = {type(n).__name__ for n in nodes if isinstance(n, BackwardCFunction)}
    suspects = []
    if custom:
        names = sorted(name.removesuffix("Backward") for name in custom)
        suspects.append(f"the custom autograd functions {', '.join(names)}")
    if any(getattr(node, "_saved_scale_grad_by_freq", False) for node in nodes):
        suspects.append("embeddings with scale_grad_by_freq=True")
    if suspects:
        return f"the suspects are {' and '.join(suspects)}"
    return (
        "no custom autograd function was seen; look for operations that replace a gradient "
        "(straight-through estimators, hooks on tensors) and for state that the step computes "
        "from the weights without gradients (spectral norm in training mode)"
    )
