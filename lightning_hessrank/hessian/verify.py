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
from lightning_hessrank.hessian.differences import DifferenceCurvature
from lightning_hessrank.hessian.moving import Gradients, flat, moved
from lightning_hessrank.network.gate import Gate

#: Step sizes relative to the size of the parameters, the most promising first. Small ones lose
#: digits to rounding, large ones cross kinks (ReLU); a correct product agrees at one of them.
STEPS = (1e-6, 1e-7, 1e-8, 1e-5, 1e-9, 1e-4, 1e-3)
#: Relative disagreement up to which a finite difference confirms a product.
AGREEMENT = 1e-4
#: Share of a product beyond which the parts do not add up to the whole. Rounding leaves some 1e-14.
SPLIT_TOLERANCE = 1e-9
#: What a check may find to be held fixed.
DETACHED = (
    "what the step takes out of the graph (detached targets and weights, no_grad) is held at its "
    "value, as autograd holds it: the Hessian is that of the loss with these values fixed"
)
PADDED = (
    "entries of parameters that have no gradient although the loss depends on them (padding_idx) "
    "are held fixed, as autograd holds them"
)

_MISSING = re.compile(r"derivative for '?(?:aten::)?(?P<name>\w+)'? is not implemented")


class WrongProductError(ArithmeticError):
    """Hessian-vector products of this loss are not the derivative of its gradient."""


class NoSecondDerivativeError(NotImplementedError):
    """An operation of the step cannot be differentiated twice."""

    def __init__(self, operation: str) -> None:
        super().__init__(
            f"{operation} has no second derivative in PyTorch, so that the Hessian of this step "
            "cannot be computed; replace it in the module, or pass loss_fn=... that avoids it"
        )
        self.operation = operation


@contextmanager
def missing_derivatives_named() -> Iterator[None]:
    """Turn what PyTorch says about a missing second derivative into what to do about it.

    Raises:
        NoSecondDerivativeError: names the operation.
    """
    try:
        yield
    except NoSecondDerivativeError:
        raise
    except RuntimeError as error:  # NotImplementedError is one too
        found = _MISSING.search(str(error))
        if found is None:
            raise
        operation = found["name"].strip("_").removesuffix("_backward")
        raise NoSecondDerivativeError(operation) from error


def check_product(function: LossFunction, *, seed: int = 0) -> tuple[str, ...]:
    """Compare one Hessian-vector product with differences of the gradient.

    The comparison happens next to the live weights, at a random point some 1e-3 away: exactly at
    them a ReLU may sit on its kink (zero inputs and a bias initialised to zero), where no step size
    agrees although nothing is wrong.

    What autograd holds fixed by definition is no error. Where the plain comparison fails, it is
    made again without the entries that have no gradient (the row of ``padding_idx``), with what the
    step detaches from the graph held at its value, and with both.

    Args:
        function: the loss; its parameters are moved, and put back.
        seed: of the point and the direction.

    Returns:
        What had to be held fixed for the product to be right, in words; empty as a rule.

    Raises:
        WrongProductError: they disagree at every step size; names the suspects.
        WrongProductError: the step gives another gradient at every evaluation.
        NonFiniteError: the loss is not finite there.
    """
    parameters = list(function.parameters.values())
    here = flat(parameters)
    generator = torch.Generator().manual_seed(seed)
    size = max(float(here.norm()), 1e-3 * math.sqrt(len(here)))
    there = here + 1e-3 * size * _random_unit(here, generator)
    direction = size * _random_unit(here, generator)
    with moved(parameters, there):
        curvature = LossCurvature(function)
        gradient = curvature.gradient()
        free = direction * (gradient != 0)  # at a random point only what has none has a zero
        vectors = torch.stack([direction, free], dim=1)
        product, product_of_free = curvature.operator("total").matmat(vectors).T
    if not bool(torch.isfinite(product).all()):
        raise NonFiniteError("a Hessian-vector product is not finite at a finite loss")
    noise = 100 * torch.finfo(here.dtype).eps * float(gradient.norm())
    errors = []
    for vector, expected, held_at, notes in (
        (direction, product, None, ()),
        (free, product_of_free, None, (PADDED,)),
        (direction, product, there, (DETACHED,)),
        (free, product_of_free, there, (PADDED, DETACHED)),
    ):
        if PADDED in notes and torch.equal(free, direction):
            continue
        gradients = Gradients(function, held_at)
        error = _disagreement(expected, gradients, there, vector, noise)
        if error is None:
            return notes
        errors.append(error)
    _check_repeats(function, there, gradient, noise)
    raise WrongProductError(_wrong(function, errors[0]))


def _check_repeats(function: LossFunction, there: Tensor, gradient: Tensor, noise: float) -> None:
    """Raise where the step gives another gradient each time: then differences say nothing."""
    change = float((Gradients(function)(there) - gradient).norm())
    if change > noise:
        raise WrongProductError(
            "the step gives another gradient every time it is evaluated on the same batch at the "
            f"same weights (it changed by {change / float(gradient.norm()):.1g} of its size), so "
            "it has no Hessian: something that it changes is not put back (a counter or an average "
            "outside of the module, a random generator of its own). Pass loss_fn=... that avoids it"
        )


def _disagreement(
    product: Tensor, gradients: Gradients, there: Tensor, direction: Tensor, noise: float
) -> float | None:
    """Smallest relative error of a product beside differences; ``None``: it is confirmed.

    Args:
        product: with the direction.
        gradients: whose differences are taken.
        there: at which point.
        direction: along which.
        noise: what rounding leaves of a gradient.
    """
    best = math.inf
    for step in STEPS:
        ahead, behind = gradients(there + step * direction), gradients(there - step * direction)
        difference = (ahead - behind) / (2 * step)
        scale = max(float(product.norm()), float(difference.norm()))
        error = float((product - difference).norm())
        if error <= AGREEMENT * scale + noise / step:
            return None
        best = min(best, error / scale)
    return best


def unexplained_share(curvature: LossCurvature | DifferenceCurvature, *, seed: int = 0) -> float:
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


def _wrong(function: LossFunction, error: float) -> str:
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
        if isinstance(node, BackwardCFunction) and not isinstance(node, Gate._backward_cls):
            found.add(type(node).__name__.removesuffix("Backward"))
        for following, _ in node.next_functions:
            if following is not None and following not in visited:
                visited.add(following)
                nodes.append(following)
    return found
