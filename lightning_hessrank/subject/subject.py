"""The subject of a measurement: a network's loss on reference data, as a function of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hessrank.hessian.function import Evaluation, LossFunction, LossTerm
from lightning_hessrank.network.autograd import graph_edges
from lightning_hessrank.network.batches import batch_size, map_tensors
from lightning_hessrank.subject.isolated import IsolatedModule
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.step import Step, StepResult, is_guess
from lightning_hessrank.subject.weights import batch_weights


class Subject(IsolatedModule):
    """An isolated copy of a network together with the data and the step that give its loss.

    Args:
        module: the live module.
        batches: what ``step`` takes, one or more; weighted so that their loss is that of all their
            samples (:mod:`~lightning_hessrank.subject.weights`).
        step: gives the loss of one batch.
        total_samples: over which the mean is taken, where other processes hold more of them;
            ``None``: those in ``batches``.
        sizes: numbers of samples in the batches; ``None``: as they can be read off.
        options: see :class:`IsolatedModule`.

    Raises:
        ValueError: no parameter requires gradients, or no data.
        TypeError: a parameter is complex.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        step: Step,
        *,
        total_samples: int | None = None,
        sizes: Sequence[int] | None = None,
        **options: Any,
    ) -> None:
        if not batches:
            raise ValueError("there is no reference data: pass at least one batch")
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"{type(module).__name__} has no parameters that require gradients, so there is no "
                "Hessian to measure; unfreeze some, or remove the monitor"
            )
        self.sizes = [batch_size(x) for x in batches] if sizes is None else list(sizes)
        super().__init__(module, **options)
        with undisturbed():  # a copy made in inference mode could not be differentiated
            self.batches = [self.cast(batch) for batch in batches]
        self.total_samples = sum(self.sizes) if total_samples is None else total_samples
        self._step = step
        self._weights: list[float] | None = None
        self.doubt: str | None = None
        """Why the loss need not be that of all data, where it is one of several batches."""
        self.outputs_guessed = False
        """Whether the outputs are only what the last modules before the loss returned."""

    @property
    def num_samples(self) -> int:
        """Samples in all batches."""
        return sum(self.sizes)

    def evaluate(self, batch: Any) -> StepResult:
        """Run the step on one (cast) batch; the same value at every call."""

        # a step may change its batch in place; bounds differentiate by it, so keep the graph
        def run(shadow: nn.Module) -> StepResult:
            return self._step(shadow, map_tensors(batch, torch.clone))

        result = self.run(run)
        if not result.settled:
            result = self.run(run)
        self.outputs_guessed |= is_guess(result.outputs)
        if result.loss.dtype != self.dtype:
            raise TypeError(
                f"the loss came out in {result.loss.dtype} although all weights and data are "
                f"{self.dtype}: something in the step casts down (.float(), .half(), a float32 "
                "constant given to a loss function); remove it, or pass loss_fn=..."
            )
        return result

    def loss_function(self) -> LossFunction:
        """Return the mean loss over all batches as a function of the trainable parameters."""
        if self._weights is None:
            share = self.num_samples / self.total_samples
            found = batch_weights(self.evaluate, self.parameters, self.batches, self.sizes)
            self._weights = [share * weight for weight in found.weights]
            self.doubt = found.doubt
        terms = [
            LossTerm(weight, lambda batch=batch: self._evaluation(batch))  # type: ignore[misc]
            for weight, batch in zip(self._weights, self.batches, strict=True)
        ]
        return LossFunction(self.parameters, terms)

    def _evaluation(self, batch: Any) -> Evaluation:
        result = self.evaluate(batch)
        self._check_own_parameters(result.loss)
        return Evaluation(result.loss, tuple(output.tensor for output in result.outputs))

    def _check_own_parameters(self, loss: Tensor) -> None:
        """Refuse a step that computes with the live module's parameters, not the copy's."""
        if any(id(getattr(node, "variable", None)) in self.live for node, _ in graph_edges([loss])):
            raise ValueError(
                "the loss is computed from the parameters of the live module, not from those of "
                "the copy that is measured: loss_fn refers to a module outside of it; use its "
                "first argument instead (loss_fn(module, batch), or model in hessian_rank)"
            )
