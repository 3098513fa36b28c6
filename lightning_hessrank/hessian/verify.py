"""Doubts about a loss function, settled before its numbers count."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_hessrank.hessian import LossCurvature, LossFunction, NonFiniteError

#: Step sizes relative to the size of the parameters, the most promising first. Small ones lose
#: digits to rounding, large ones cross kinks (ReLU); a correct product agrees at one of them.
STEPS = (1e-6, 1e-7, 1e-8, 1e-5, 1e-9, 1e-4, 1e-3)
#: Relative disagreement up to which a finite difference confirms a product.
AGREEMENT = 1e-4
#: Share of a product beyond which the parts do not add up to the whole. Rounding leaves some 1e-14.
SPLIT_TOLERANCE = 1e-9


_MISSING = re.compile(r"derivative for '?(?:aten::)?(?P<name>\w+)'? is not implemented")


class WrongProductError(ArithmeticError):
    """Hessian-vector products of this loss are not the derivative of its gradient."""


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


def check_product(function: LossFunction, *, seed: int = 0) -> None:
    """Compare one Hessian-vector product with central differences of the gradient.

    The comparison happens next to the live weights, at a random point some 1e-3 away: exactly at
    them a ReLU may sit on its kink (zero inputs and a bias initialised to zero), where no step size
    agrees although nothing is wrong.

    Args:
        function: the loss; its parameters are moved, and put back.
        seed: of the point and the direction.

    Raises:
        WrongProductError: they disagree at every step size; names the suspects.
        NonFiniteError: the loss is not finite there.
    """
    parameters = list(function.parameters.values())
    here = torch.cat([x.detach().flatten() for x in parameters])
    generator = torch.Generator().manual_seed(seed)
    size = max(float(here.norm()), 1e-3 * math.sqrt(len(here)))
    there = here + 1e-3 * size * _random_unit(here, generator)
    direction = size * _random_unit(here, generator)
    with _moved(parameters, there):
        curvature = LossCurvature(function)
        product = curvature.operator("total").matmat(direction.unsqueeze(1)).squeeze(1)
        scale_of_gradient = float(curvature.gradient().norm())
    if not bool(torch.isfinite(product).all()):
        raise NonFiniteError("a Hessian-vector product is not finite at a finite loss")
    errors = {}
    for step in STEPS:
        difference = (
            _gradient(function, parameters, there + step * direction)
            - _gradient(function, parameters, there - step * direction)
        ) / (2 * step)
        noise = 100 * torch.finfo(here.dtype).eps * scale_of_gradient / step
        scale = max(float(product.norm()), float(difference.norm()))
        error = float((product - difference).norm())
        if error <= AGREEMENT * scale + noise:
            return
        errors[step] = error / scale
    raise WrongProductError(_disagreement(function, min(errors.values())))


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
    suspects = sorted(_custom_functions(function))
    if suspects:
        blame = f"the suspects are the custom autograd functions {', '.join(suspects)}"
    else:
        blame = (
            "no custom autograd function was seen; look for operations that replace a gradient "
            "(straight-through estimators, hooks on tensors) and for state that the step computes "
            "from the weights without gradients (spectral norm in training mode)"
        )
    return (
        "a Hessian-vector product disagrees with finite differences of the gradient at every step "
        f"size (relative error {error:.1g} at best), so the second derivatives of this step are "
        f"wrong and no rank is given; {blame}. Pass loss_fn=... that avoids them"
    )


def _custom_functions(function: LossFunction) -> set[str]:
    found: set[str] = set()
    with torch.enable_grad():
        nodes: list[Any] = [term.evaluate().loss.grad_fn for term in function.terms]
    visited = set(nodes)
    while nodes:
        node = nodes.pop()
        if isinstance(node, BackwardCFunction):
            found.add(type(node).__name__.removesuffix("Backward"))
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                nodes.append(following)
    return found
