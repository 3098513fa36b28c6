"""A loss as a function of parameters, and the products with its Hessian and the two parts of it.

Two designs were weighed. (a) Functional: ``torch.func.functional_call`` with ``jvp`` of ``vjp``. It
composes well, but a ``training_step`` is not a pure function (it logs, updates buffers, draws
random numbers), and every product repeats the forward pass. (b) One evaluation, whose graph is kept
and differentiated twice. It runs user code once and as it is, serves all three parts and any number
of vectors, and needs memory for one graph. (b) wins; where that memory is lacking the evaluation
can be repeated, since a :class:`LossTerm` is a function and not a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.operators.base import SymmetricOperator
from lightning_hessrank.results import Part


class Evaluation(NamedTuple):
    """One evaluation of the loss, with its autograd graph."""

    loss: Tensor
    """Scalar mean over the samples of the batch."""
    outputs: tuple[Tensor, ...]
    """The network's outputs, on which the loss depends; empty where they are unknown."""


@dataclass(frozen=True)
class LossTerm:
    """One batch of a mean loss."""

    weight: float
    """Share of the mean: samples in this batch / samples in all."""
    evaluate: Callable[[], Evaluation]
    """Evaluates the batch; every call gives the same value (randomness is frozen)."""


@dataclass(frozen=True)
class LossFunction:
    """``sum(term.weight * term.loss)`` as a function of named parameters."""

    parameters: Mapping[str, Tensor]
    """Leaf tensors that require gradients, in the order that rows of the Hessian have."""
    terms: Sequence[LossTerm]

    @property
    def num_parameters(self) -> int:
        """Dimension of the Hessian."""
        return sum(x.numel() for x in self.parameters.values())


class OutputsUnknownError(ValueError):
    """The parts were asked for, but the tensor that enters the loss is not known."""


class NonFiniteError(FloatingPointError):
    """The loss, its gradient or its Hessian is not finite; the message says which."""


class LossCurvature:
    """Hessian of a loss function and its parts, from one retained graph per batch.

    With outputs ``f(θ)`` and loss ``ℓ(f)``, ``H = Jᵀ (∇²ℓ) J + Σ_k (∂ℓ/∂f_k) ∇²f_k``: the
    outer-product Hessian (= generalised Gauss–Newton) and the functional Hessian (Singh, Bachmann,
    Hofmann, arXiv 2106.16225, section 2). The functional part is differentiated directly, not as a
    difference, which would lose it in rounding where residuals are small.

    Raises:
        NonFiniteError: at construction, if the loss is not finite.
    """

    def __init__(self, function: LossFunction) -> None:
        self.parameters = tuple(function.parameters.values())
        self.num_parameters = function.num_parameters
        with torch.enable_grad():
            evaluations = [(term.weight, term.evaluate()) for term in function.terms]
        self.loss = sum(float(weight * e.loss.detach()) for weight, e in evaluations)
        for _, evaluation in evaluations:
            _check_finite(evaluation)
        self.outputs_known = all(e.outputs for _, e in evaluations)
        self._graphs = [_Graph(self.parameters, weight, e) for weight, e in evaluations]

    def operator(self, part: Part = "total") -> SymmetricOperator:
        """Return the Hessian (``"total"``) or one of its parts as an operator.

        Raises:
            OutputsUnknownError: a part of a loss whose network output is unknown.
        """
        if part != "total" and not self.outputs_known:
            raise OutputsUnknownError(
                f"part={part!r} needs the network's output, but no known loss function was seen; "
                'return {"loss": loss, "output": output} from the step or loss_fn, or use a loss '
                "of torch.nn.functional"
            )
        return _PartOperator(self, part)

    def products(self, part: Part, vectors: Tensor) -> Tensor:
        """Multiply a part with ``vectors`` of shape ``(num_parameters, k)``."""
        columns = self._split(vectors)
        total = torch.zeros_like(vectors)
        for graph in self._graphs:
            product = getattr(graph, part)(columns)
            total += graph.weight * torch.cat([x.flatten(1) for x in product], dim=1).T
        return total

    def gradient(self) -> Tensor:
        """Gradient of the loss, shape ``(num_parameters,)``."""
        total = torch.zeros(self.num_parameters, dtype=self.dtype, device=self.device)
        for graph in self._graphs:
            total += graph.weight * torch.cat([x.detach().flatten() for x in graph.gradient])
        return total

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters and products."""
        return self.parameters[0].dtype

    @property
    def device(self) -> torch.device:
        """Of the parameters and products."""
        return self.parameters[0].device

    def _split(self, vectors: Tensor) -> list[Tensor]:
        pieces = vectors.T.split([x.numel() for x in self.parameters], dim=1)
        return [v.reshape(-1, *x.shape).to(x) for v, x in zip(pieces, self.parameters, strict=True)]


class _PartOperator(SymmetricOperator):
    def __init__(self, curvature: LossCurvature, part: Part) -> None:
        self._curvature = curvature
        self._part = part
        self.dim = curvature.num_parameters
        self.dtype = curvature.dtype
        self.device = curvature.device

    def matmat(self, vectors: Tensor) -> Tensor:
        return self._curvature.products(self._part, vectors)


class _Graph:
    """The retained graph of one evaluation; what each part needs is built on first use."""

    def __init__(
        self, parameters: tuple[Tensor, ...], weight: float, evaluation: Evaluation
    ) -> None:
        self.parameters = parameters
        self.weight = weight
        self.loss, self.outputs = evaluation

    @cached_property
    def gradient(self) -> tuple[Tensor, ...]:
        return _differentiate((self.loss,), self.parameters)

    @cached_property
    def _output_gradient(self) -> tuple[Tensor, ...]:
        return _differentiate((self.loss,), self.outputs)

    @cached_property
    def _linearised(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """``u`` and ``Jᵀu``; the latter is linear in ``u``, its derivative gives ``Jv``."""
        u = tuple(torch.zeros_like(f, requires_grad=True) for f in self.outputs)
        return u, _differentiate(self.outputs, self.parameters, u)

    @cached_property
    def _residual_gradient(self) -> tuple[Tensor, ...]:
        """``Jᵀ r`` with the residual ``r = ∂ℓ/∂f`` held constant."""
        residual = tuple(s.detach() for s in self._output_gradient)
        return _differentiate(self.outputs, self.parameters, residual)

    def total(self, columns: list[Tensor]) -> list[Tensor]:
        return _batched_vjp(self.gradient, self.parameters, columns)

    def functional(self, columns: list[Tensor]) -> list[Tensor]:
        return _batched_vjp(self._residual_gradient, self.parameters, columns)

    def outer(self, columns: list[Tensor]) -> list[Tensor]:
        u, transposed = self._linearised
        pushed = _batched_vjp(transposed, u, columns)
        curved = _batched_vjp(self._output_gradient, self.outputs, pushed)
        return _batched_vjp(self.outputs, self.parameters, curved)


def _differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Gradient with a graph of its own, zeros where there is no dependence."""
    grads = torch.autograd.grad(
        outputs,
        inputs,
        cotangents,
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return tuple(grads)


def _batched_vjp(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
) -> list[Tensor]:
    """``cotangentsᵀ · ∂outputs/∂inputs`` for cotangents with a leading batch dimension."""
    differentiable = [(y, v) for y, v in zip(outputs, cotangents, strict=True) if y.requires_grad]
    k = cotangents[0].shape[0]
    if not differentiable:
        return [x.new_zeros(k, *x.shape) for x in inputs]
    ys, vs = zip(*differentiable, strict=True)
    grads = torch.autograd.grad(
        ys, inputs, vs, retain_graph=True, allow_unused=True, is_grads_batched=True
    )
    # Not materialize_grads: its zeros would lack the batch dimension.
    return [
        x.new_zeros(k, *x.shape) if g is None else g for g, x in zip(grads, inputs, strict=True)
    ]


def _check_finite(evaluation: Evaluation) -> None:
    for output in evaluation.outputs:
        bad = int((~torch.isfinite(output)).sum())
        if bad:
            raise NonFiniteError(
                f"the network's output is not finite ({bad} of {output.numel()} values): "
                "look at the weights and the inputs"
            )
    if not bool(torch.isfinite(evaluation.loss)):
        raise NonFiniteError(f"the loss is {float(evaluation.loss.detach())} at a finite output")
