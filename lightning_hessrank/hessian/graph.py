"""The autograd graph of one evaluation of the loss, and products with what it says of curvature."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from lightning_hessrank.hessian.memory import is_out_of_memory
from lightning_hessrank.network.autograd import pull_back
from lightning_hessrank.network.gate import closed_gates
from lightning_hessrank.results import Part


class Batching:
    """Whether several vectors go through a graph at once, or one after the other, and why.

    Batches go through ``vmap``, which some operations do not support; they are then looped over.
    """

    def __init__(self) -> None:
        self.enabled = True
        self.reason: str | None = None
        """Why it was switched off."""

    def pull_back(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> list[Tensor]:
        """Do :func:`~lightning_hessrank.network.autograd.pull_back`, batched while that works."""
        if self.enabled and len(cotangents[0]) > 1:
            try:
                return self._batched(outputs, inputs, cotangents)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self.disable(str(error).strip().splitlines()[0])
        return pull_back(outputs, inputs, cotangents, batched=False)

    def disable(self, reason: str) -> None:
        """Loop from now on."""
        self.enabled = False
        self.reason = reason

    def _batched(
        self, outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor]
    ) -> list[Tensor]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            grads = pull_back(outputs, inputs, cotangents)
        for warning in caught:
            if "performance drop" in str(warning.message):
                self.disable(str(warning.message).strip().splitlines()[0])
        return grads


class Graph:
    """The retained graph of one evaluation; what each part needs is built on first use."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        loss: Tensor,
        outputs: Sequence[Tensor],
        batching: Batching,
    ) -> None:
        self.parameters = tuple(parameters)
        self.loss = loss
        self.outputs = tuple(outputs)
        self.batching = batching

    @cached_property
    def gradient(self) -> tuple[Tensor, ...]:
        """Of the loss by the parameters."""
        return _differentiate((self.loss,), self.parameters)

    @cached_property
    def output_gradient(self) -> tuple[Tensor, ...]:
        """``r = ∂ℓ/∂f`` by the outputs."""
        with closed_gates():
            return _differentiate((self.loss,), self.outputs)

    def detached_output_gradient(self) -> tuple[Tensor, ...]:
        """The same without a graph, where the loss has a first derivative only."""
        with closed_gates():
            return torch.autograd.grad(self.loss, self.outputs, retain_graph=True)

    @cached_property
    def _linearised(self) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """``u`` and ``Jᵀu``; the latter is linear in ``u``, its derivative gives ``Jv``."""
        u = tuple(torch.zeros_like(f, requires_grad=True) for f in self.outputs)
        return u, _differentiate(self.outputs, self.parameters, u)

    @cached_property
    def _residual_gradient(self) -> tuple[Tensor, ...]:
        return self.residual_gradient(self.parameters)

    def residual_gradient(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``Jᵀ r`` by some inputs, with the residual ``r`` held constant."""
        residual = tuple(s.detach() for s in self.output_gradient)
        return _differentiate(self.outputs, inputs, residual)

    def multiply(
        self, part: Part, columns: Mapping[int, Tensor], rows: Sequence[int]
    ) -> list[Tensor]:
        """Multiply columns of a part, and return some of its rows.

        Args:
            part: of the Hessian of this evaluation's loss.
            columns: number of a parameter -> its share of the vectors, shape ``(k, *shape)``;
                parameters left out have share zero, and their part of the graph is not visited.
            rows: numbers of the parameters whose share of the product is wanted.
        """
        inputs = [self.parameters[i] for i in rows]
        if part == "outer":
            return self.pull_back(self.bend(self.push_forward(columns)), inputs)
        source = self.gradient if part == "total" else self._residual_gradient
        chosen = [source[i] for i in columns]
        return self.batching.pull_back(chosen, inputs, list(columns.values()))

    def push_forward(self, columns: Mapping[int, Tensor]) -> list[Tensor]:
        """``Jv``: change of the outputs, each ``(k, *output.shape)``."""
        u, transposed = self._linearised
        return self.batching.pull_back([transposed[i] for i in columns], u, list(columns.values()))

    def bend(self, pushed: Sequence[Tensor]) -> list[Tensor]:
        """``(∇²ℓ) u`` for changes ``u`` of the outputs, with a leading batch dimension."""
        with closed_gates():
            return self.batching.pull_back(self.output_gradient, self.outputs, pushed)

    def pull_back(self, cotangents: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """``Jᵀu`` for cotangents of the outputs, with a leading batch dimension."""
        return self.batching.pull_back(self.outputs, inputs, cotangents)


def _differentiate(
    outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Gradient with a graph of its own, zeros where there is no dependence."""
    if not any(y.requires_grad for y in outputs):
        return tuple(torch.zeros_like(x) for x in inputs)
    return torch.autograd.grad(
        outputs,
        inputs,
        cotangents,
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
