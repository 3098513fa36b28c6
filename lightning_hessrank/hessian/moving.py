"""The gradient of a loss at other parameters than the live ones: what differences are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from lightning_hessrank.hessian.function import LossFunction
from lightning_hessrank.network.held import HeldValues


def flat(parameters: Sequence[Tensor]) -> Tensor:
    """Return all parameters in one vector, a copy."""
    return torch.cat([x.detach().flatten() for x in parameters])


@contextmanager
def moved(parameters: Sequence[Tensor], where: Tensor) -> Iterator[None]:
    """Put parameters to ``where``, shape ``(num_parameters,)``, inside."""
    kept = [x.data for x in parameters]
    pieces = where.split([x.numel() for x in parameters])
    try:
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.data = piece.reshape(parameter.shape).clone()
        yield
    finally:
        for parameter, data in zip(parameters, kept, strict=True):
            parameter.data = data


class Gradients:
    """The gradient of a loss as a function of the parameters.

    Args:
        function: the loss; its parameters are moved, and put back.
        held_at: where what the step takes out of the graph has its values, wherever the gradient is
            asked for; ``None``: they follow the parameters.
        padding_only: of these, hold only what embeddings look up for padding.
    """

    def __init__(
        self,
        function: LossFunction,
        held_at: Tensor | None = None,
        *,
        padding_only: bool = False,
    ) -> None:
        self._terms = tuple(function.terms)
        self._parameters = tuple(function.parameters.values())
        self._held = (
            None
            if held_at is None
            else [HeldValues(padding_only=padding_only) for _ in self._terms]
        )
        if held_at is not None:
            self(held_at)
            for held in self._held or ():
                held.recording = False

    @property
    def holds(self) -> bool:
        """Whether there is anything that is held."""
        return any(held.holds for held in self._held or ())

    def __call__(self, where: Tensor) -> Tensor:
        """Gradient at ``where``, both of shape ``(num_parameters,)``."""
        total = torch.zeros_like(where)
        runs: Sequence[AbstractContextManager[object]] = self._held or [nullcontext()] * len(
            self._terms
        )
        with moved(self._parameters, where), torch.enable_grad():
            for term, run in zip(self._terms, runs, strict=True):
                with run:
                    loss = term.evaluate().loss
                grads = torch.autograd.grad(
                    loss, self._parameters, allow_unused=True, materialize_grads=True
                )
                total += term.weight * torch.cat([g.flatten() for g in grads])
        return total
