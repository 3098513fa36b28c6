"""The subject of a measurement: a network's loss on reference data, as a function of parameters."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_hessrank.hessian.function import LossFunction, LossTerm
from lightning_hessrank.network.autograd import graph_edges
from lightning_hessrank.network.batches import batch_size, cut_batch, map_tensors, slice_batch
from lightning_hessrank.network.function import Evaluation
from lightning_hessrank.subject.isolated import IsolatedModule, set_mode
from lightning_hessrank.subject.isolation import undisturbed
from lightning_hessrank.subject.prefix import difference
from lightning_hessrank.subject.step import Step, StepResult, is_guess
from lightning_hessrank.subject.weights import batch_weights

#: Samples that a subject on few of them has in any case.
QUICK_SAMPLES = 8


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
        settled: whether the step is known to write nothing into parameters, so that it need not be
            run for that.
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
        settled: bool = False,
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
        self.once_only: str | None = None
        """An operation of the step that has no second derivative, once that is known."""
        self._divisible: dict[int, tuple[Any, bool]] = {}
        self._seen: dict[int, tuple[Any, StepResult]] = {}
        """What the step gave in evaluation mode, without a graph, by the batch's id."""
        self.seconds = 0.0
        """That one evaluation of all batches takes."""
        if not settled:
            began = time.perf_counter()
            with undisturbed():
                self.settle([partial(self._look, batch=batch) for batch in self.batches])
            if len(self._seen) == len(self.batches):  # of a step that fails, nothing is known
                self.seconds = time.perf_counter() - began
            if self._protection is not None or options.get("training") is not False:
                self._seen.clear()

    @property
    def num_samples(self) -> int:
        """Samples in all batches."""
        return sum(self.sizes)

    @property
    def doubts(self) -> tuple[str, ...]:
        """What to say of the loss, once it was asked for."""
        return () if self.doubt is None else (self.doubt,)

    @property
    def least(self) -> int:
        """Fewest samples that :meth:`first` gives."""
        batch, size = self.batches[0], self.sizes[0]
        return 1 if self._is_divisible(batch, size) else size

    def evaluate(self, batch: Any) -> StepResult:
        """Run the step on one (cast) batch; the same value at every call."""
        result = self.run(partial(self.step, batch=batch))
        if not result.settled:
            result = self.run(partial(self.step, batch=batch))
        self.outputs_guessed |= is_guess(result.outputs)
        if result.loss.dtype != self.dtype:
            raise TypeError(
                f"the loss came out in {result.loss.dtype} although all weights and data are "
                f"{self.dtype}: something in the step casts down (.float(), .half(), a float32 "
                "constant given to a loss function); remove it, or pass loss_fn=..."
            )
        return result

    def first(self, samples: int) -> Subject:
        """Return the same network on at most so many of the samples, without copying it again.

        Of a batch that cannot be cut, all samples are taken, at least of the first.
        """
        batches: list[Any] = []
        sizes: list[int] = []
        for batch, size in zip(self.batches, self.sizes, strict=True):
            left = samples - sum(sizes)
            if 0 < left < size and self._is_divisible(batch, size):
                batches.append(cut_batch(batch, left, size))
                sizes.append(left)
            elif left >= size or not batches:
                batches.append(batch)
                sizes.append(size)
        few = self._on(batches, sizes)
        few.total_samples = few.num_samples
        return few

    def quick(self, seconds: float | None, least: int = QUICK_SAMPLES) -> Subject:
        """Return the same network on as many of the samples as are evaluated in some seconds.

        On all of them where there is no limit (``None``), and never on fewer than ``least``.
        """
        if seconds is None or self.seconds <= seconds:
            return self
        samples = max(least, int(self.num_samples * seconds / self.seconds))
        return self if samples >= self.num_samples else self.first(samples)

    def one_by_one(self) -> Subject | None:
        """Return the same network on the same samples, each a batch of its own.

        ``None`` where some batch cannot be cut.
        """
        pairs = list(zip(self.batches, self.sizes, strict=True))
        if not all(self._is_divisible(batch, size) for batch, size in pairs):
            return None
        batches = [slice_batch(x, i, i + 1, size) for x, size in pairs for i in range(size)]
        return self._on(batches, [1] * len(batches))

    def _on(self, batches: list[Any], sizes: list[int]) -> Subject:
        """Return the same network on other data."""
        other = copy.copy(self)
        other.batches, other.sizes = batches, sizes
        other.seconds = self.seconds * sum(sizes) / self.num_samples
        other._weights, other.doubt = None, None
        return other

    def _is_divisible(self, batch: Any, size: int) -> bool:
        """Whether the beginning of a batch is a batch; tried once."""
        if id(batch) not in self._divisible:
            reason = self.why_whole(batch, size, (size + 1) // 2)
            self._divisible[id(batch)] = batch, reason is None
        return self._divisible[id(batch)][1]

    def why_whole(self, batch: Any, size: int, samples: int) -> str | None:
        """Say why the first samples of a batch are no batch of the same; ``None``: they are.

        Asked in evaluation mode, where batch norm does not mix samples.
        """

        def run(shadow: nn.Module, batch: Any) -> StepResult:
            set_mode(shadow, False)
            return self.step(shadow, batch)

        def evaluate(batch: Any) -> StepResult:
            if id(batch) in self._seen:
                return self._seen[id(batch)][1]
            return self.run(partial(run, batch=batch))

        return difference(evaluate, batch, cut_batch(batch, samples, size), (size, samples))

    def in_precision(self, dtype: torch.dtype) -> Subject:
        """Return a copy of the network, on the same data, in another precision."""
        other = Subject(
            self.shadow,
            self.batches,
            self._step,
            total_samples=self.total_samples,
            sizes=self.sizes,
            dtype=dtype,
            seed=self._seed,
            trainer=self._trainer,
            settled=self._protection is None,
        )
        other.seconds = self.seconds
        other._divisible = {
            id(batch): (batch, self._divisible[id(own)][1])
            for own, batch in zip(self.batches, other.batches, strict=True)
            if id(own) in self._divisible
        }
        other._weights = self.weights  # which lower precisions do not tell
        return other

    def step(self, shadow: nn.Module, batch: Any) -> StepResult:
        """Run the step on the copy, once and as it is; see :meth:`evaluate`."""
        # a step may change its batch in place; bounds differentiate by it, so keep the graph
        return self._step(shadow, map_tensors(batch, torch.clone))

    def _look(self, shadow: nn.Module, batch: Any) -> None:
        """Run the step, and remember what it gave."""
        result = self.step(shadow, batch)
        outputs = tuple(replace(x, tensor=x.tensor.detach()) for x in result.outputs)
        self._seen[id(batch)] = batch, StepResult(result.loss.detach(), outputs)

    @property
    def weights(self) -> list[float]:
        """With which the losses of the batches add up to that of all samples; found once."""
        if self._weights is None:
            share = self.num_samples / self.total_samples
            found = batch_weights(self.evaluate, self.parameters, self.batches, self.sizes)
            self._weights = [share * weight for weight in found.weights]
            self.doubt = found.doubt
        return self._weights

    def loss_function(self) -> LossFunction:
        """Return the mean loss over all batches as a function of the trainable parameters."""
        terms = [
            LossTerm(weight, lambda batch=batch: self._evaluation(batch))  # type: ignore[misc]
            for weight, batch in zip(self.weights, self.batches, strict=True)
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
