"""A loss as a function of parameters: a mean over batches, each of which can be evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_hessrank.network.function import Evaluation
from lightning_hessrank.results import NonFiniteError


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


def check_finite(evaluation: Evaluation) -> None:
    """Raise :class:`NonFiniteError` unless output and loss are finite."""
    for output in evaluation.outputs:
        bad = int((~torch.isfinite(output)).sum())
        if bad:
            raise NonFiniteError(
                f"the network's output is not finite ({bad} of {output.numel()} values): "
                "look at the weights and the inputs"
            )
    if not bool(torch.isfinite(evaluation.loss)):
        raise NonFiniteError(f"the loss is {float(evaluation.loss.detach())} at a finite output")
