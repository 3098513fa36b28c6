"""Doubts about a loss function, settled before its numbers count."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lightning_hessrank.hessian.differences import DifferenceCurvature
from lightning_hessrank.hessian.function import LossFunction
from lightning_hessrank.hessian.moving import Gradients, flat, moved
from lightning_hessrank.hessian.operator import multiply_in_blocks
from lightning_hessrank.hessian.parts import LossCurvature
from lightning_hessrank.network.autograd import graph_nodes
from lightning_hessrank.network.gate import Gate
from lightning_hessrank.results import NonFiniteError

#: Step sizes relative to the size of the parameters, the most promising first. Small ones lose
#: digits to rounding, large ones cross kinks (ReLU); a correct product agrees at one of them.
STEPS = (1e-7, 1e-6, 1e-8, 1e-5, 1e-9, 1e-4, 1e-3)
#: Relative disagreement up to which a finite difference confirms a product.
AGREEMENT = 1e-4
#: Disagreement of ``vᵀHw`` and ``wᵀHv`` that rounding does not explain, in eps of ``‖Hv‖‖w‖``.
#: Rounding leaves some 1 to 100; rows that are wrong by a factor leave ``1 / (eps √p)``, about.
ASYMMETRY = 1e5
#: Rounding error of a gradient, relative to it, up to which its differences confirm a product.
CONFIRMING = 0.01
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
    """Hessian-vector products of this loss are not those of a Hessian."""


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


def check_product(
    function: LossFunction, *, max_bytes: int | None = None, seed: int = 0
) -> tuple[str, ...]:
    """Check that products are symmetric, and the derivative of the gradient.

    ``vᵀHw = wᵀHv`` tells a gradient that is the derivative of something from one that is not: an
    embedding that scales it by the frequency of a word, a logarithm clamped in one direction only.
    Differences of the gradient tell a wrong second derivative from a right one.

    The comparison happens next to the live weights, at a random point some 1e-3 away: exactly at
    them a ReLU may sit on its kink (zero inputs and a bias initialised to zero), where no step size
    agrees although nothing is wrong, and a layer initialised to zero hides what is wrong behind it.
    Costs two products and one gradient, if that confirms them at the first step size, and holds the
    graph of one term at a time.

    What autograd holds fixed by definition is no error. Where the plain comparison fails, it is
    made again without the entries that have no gradient, with what an embedding looks up for its
    ``padding_idx`` held at its value, and with all that the step detaches from the graph held.

    Args:
        function: the loss; its parameters are moved, and put back.
        max_bytes: what graphs may hold in memory; ``None``: half of what is free.
        seed: of the point and the directions.

    Returns:
        What had to be held fixed for the product to be right, in words; empty as a rule.

    Raises:
        WrongProductError: not symmetric, or no step size agrees; names the suspects.
        WrongProductError: the step gives another gradient at every evaluation.
        NonFiniteError: the loss is not finite there.
    """
    parameters = list(function.parameters.values())
    here = flat(parameters)
    generator = torch.Generator().manual_seed(seed)
    size = max(float(here.norm()), 1e-3 * math.sqrt(len(here)))
    there = here + 1e-3 * size * _random_unit(here, generator)
    vectors = [size * _random_unit(here, generator) for _ in range(2)]
    with moved(parameters, there):
        products, gradient = _products(function, torch.stack(vectors, dim=1), max_bytes)
    if not bool(torch.isfinite(products).all()):
        raise NonFiniteError("a Hessian-vector product is not finite at a finite loss")
    steepness = float(gradient.norm())
    _check_symmetry(function, vectors, products, size * steepness)
    free = vectors[0] * (gradient != 0)  # at a random point only what has none has a zero
    whole = _Tangent(there, gradient, vectors[0], products[:, 0])
    errors: list[float] = []
    for gradients, told in _holding(function, there):
        error = _disagreement(gradients, whole)
        if error is None:
            return told
        errors.append(error)
        if not torch.equal(free, whole.direction):
            with moved(parameters, there):
                product = _products(function, free.unsqueeze(1), max_bytes)[0][:, 0]
            if _disagreement(gradients, whole._replace(direction=free, product=product)) is None:
                return (PADDED, *(x for x in told if x is not PADDED))
    rounding = _rounding(function, there, gradient)
    if _disagreement(Gradients(function), whole._replace(rounding=rounding)) is None:
        return ()
    raise WrongProductError(_wrong(function, errors[0]))


class _Tangent(NamedTuple):
    """What is known of the gradient at a point."""

    point: Tensor
    gradient: Tensor
    direction: Tensor
    product: Tensor
    """Of the Hessian with the direction."""
    rounding: float = 0.0
    """How far the gradient that the step itself computes is from this one."""

    @property
    def noise(self) -> float:
        """What rounding leaves of a gradient."""
        eps = torch.finfo(self.gradient.dtype).eps
        return 100 * eps * float(self.gradient.norm()) + 10 * self.rounding


def _holding(function: LossFunction, there: Tensor) -> Iterator[tuple[Gradients, tuple[str, ...]]]:
    """Gradients with ever more of what autograd holds fixed, and what that is in words.

    A lookup of padding has no gradient, though its row may have one (weights tied to a decoder).
    """
    yield Gradients(function), ()
    padding = Gradients(function, there, padding_only=True)
    padded = (PADDED,) if padding.holds else ()
    if padded:
        yield padding, padded
    yield Gradients(function, there), (*padded, DETACHED)


def _check_symmetry(
    function: LossFunction, vectors: Sequence[Tensor], products: Tensor, rounded: float
) -> None:
    """Raise unless ``vᵀHw = wᵀHv``, but for the rounding of a number as large as ``rounded``."""
    first, second = products.T
    difference = abs(float(vectors[1] @ first - vectors[0] @ second))
    scale = float(vectors[0].norm()) * max(float(first.norm()), float(second.norm()))
    if difference > ASYMMETRY * torch.finfo(products.dtype).eps * (scale + rounded):
        raise WrongProductError(_asymmetry(function, difference / scale))


def _rounding(function: LossFunction, there: Tensor, gradient: Tensor) -> float:
    """Rounding error of the gradient that the step computes, beside the one that was measured.

    The latter keeps its digits where a softmax is nearly certain
    (:mod:`lightning_hessrank.hessian.rewrite`). Where the other has none left, it confirms nothing.

    Raises:
        WrongProductError: the step gives another gradient each time, or one of rounding errors.
    """
    plain = Gradients(function)(there)
    size = float(gradient.norm())
    change = float((Gradients(function)(there) - plain).norm())
    if change > 100 * torch.finfo(gradient.dtype).eps * size:
        raise WrongProductError(
            "the step gives another gradient every time it is evaluated on the same batch at the "
            f"same weights (it changed by {change / size:.1g} of its size), so "
            "it has no Hessian: something that it changes is not put back (a counter or an average "
            "outside of the module, a random generator of its own). Pass loss_fn=... that avoids it"
        )
    rounding = float((plain - gradient).norm())
    if rounding > CONFIRMING * size:
        raise WrongProductError(
            f"the gradient that the step computes consists of rounding errors (by {rounding:.1g}, "
            f"at a size of {size:.1g}): the loss is too close to zero for its second derivatives "
            "to be confirmed, so no rank is given. Measure earlier in the run, before it vanishes"
        )
    return rounding


def _disagreement(gradients: Gradients, tangent: _Tangent) -> float | None:
    """Smallest relative error of a product beside differences of gradients; ``None``: confirmed."""
    point, gradient, direction, product, _ = tangent
    best = math.inf
    for step in STEPS:
        ahead, behind, width = gradients(point + step * direction), gradient, step
        for sides in (1, 2):
            if sides == 2:
                behind, width = gradients(point - step * direction), 2 * step
            difference = (ahead - behind) / width
            scale = max(float(product.norm()), float(difference.norm()))
            error = float((product - difference).norm())
            if error <= AGREEMENT * scale + tangent.noise / step:
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
    custom = {
        type(node).__name__
        for node in nodes
        if isinstance(node, BackwardCFunction) and not isinstance(node, Gate._backward_cls)
    }
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
