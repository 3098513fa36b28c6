"""The subject of a measurement: a network's loss on reference data, as a function of parameters."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hessrank.hessian.function import Evaluation, LossFunction, LossTerm
from lightning_hessrank.network.autograd import graph_edges
from lightning_hessrank.network.batches import batch_size, cut_batch, map_tensors, slice_batch
from lightning_hessrank.subject.isolated import IsolatedModule
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.step import Step, StepResult


class Subject(IsolatedModule):
    """An isolated copy of a network together with the data and the step that give its loss.

    Args:
        module: the live module.
        batches: what ``step`` takes, one or more; weighted by their numbers of samples.
        step: gives the loss of one batch.
        total_samples: over which the mean is taken, where other processes hold more of them;
            ``None``: those in ``batches``.
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
        **options: Any,
    ) -> None:
        if not batches:
            raise ValueError("there is no reference data: pass at least one batch")
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"{type(module).__name__} has no parameters that require gradients, so there is no "
                "Hessian to measure; unfreeze some, or remove the monitor"
            )
        self.sizes = [batch_size(batch) for batch in batches]
        super().__init__(module, **options)
        with undisturbed():  # a copy made in inference mode could not be differentiated
            self.batches = [self.cast(batch) for batch in batches]
        self.total_samples = sum(self.sizes) if total_samples is None else total_samples
        self._step = step
        with undisturbed():
            self.settle([partial(self.step, batch=batch) for batch in self.batches])

    @property
    def num_samples(self) -> int:
        """Samples in all batches."""
        return sum(self.sizes)

    def evaluate(self, batch: Any) -> StepResult:
        """Run the step on one (cast) batch; the same value at every call."""
        result = self.run(partial(self.step, batch=batch))
        if result.loss.dtype != self.dtype:
            raise TypeError(
                f"the loss came out in {result.loss.dtype} although all weights and data are "
                f"{self.dtype}: something in the step casts down (.float(), .half(), a float32 "
                "constant given to a loss function); remove it, or pass loss_fn=..."
            )
        return result

    def first(self, samples: int) -> Subject:
        """Return the same network on at most so many of the samples, without copying it again."""
        few = copy.copy(self)
        few.batches, few.sizes, left = [], [], samples
        for batch in self.batches:
            if left > 0:
                few.batches.append(cut_batch(batch, left))
                few.sizes.append(batch_size(few.batches[-1]))
                left -= few.sizes[-1]
        few.total_samples = few.num_samples
        return few

    def one_by_one(self) -> Subject:
        """Return the same network on the same samples, each a batch of its own."""
        single = copy.copy(self)
        single.batches = [
            slice_batch(batch, i, i + 1)
            for batch, size in zip(self.batches, self.sizes, strict=True)
            for i in range(size)
        ]
        single.sizes = [1] * len(single.batches)
        return single

    def in_precision(self, dtype: torch.dtype) -> Subject:
        """Return a copy of the network, on the same data, in another precision."""
        return Subject(
            self.shadow,
            self.batches,
            self._step,
            total_samples=self.total_samples,
            dtype=dtype,
            seed=self._seed,
            trainer=self._trainer,
        )

    def step(self, shadow: nn.Module, batch: Any) -> StepResult:
        """Run the step on the copy, once and as it is; see :meth:`evaluate`."""
        # a step may change its batch in place; bounds differentiate by it, so keep the graph
        return self._step(shadow, map_tensors(batch, torch.clone))

    def loss_function(self) -> LossFunction:
        """Return the mean loss over all batches as a function of the trainable parameters."""
        terms = [
            LossTerm(size / self.total_samples, lambda batch=batch: self._evaluation(batch))  # type: ignore[misc]
            for size, batch in zip(self.sizes, self.batches, strict=True)
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
