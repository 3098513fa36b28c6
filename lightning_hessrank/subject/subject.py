"""The subject of a measurement: a network's loss on reference data, as a function of parameters."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lightning_hessrank.hessian import Evaluation, LossFunction, LossTerm
from lightning_hessrank.network.batches import batch_size, cast_batch, map_tensors
from lightning_hessrank.subject.isolation import differentiable_twice, frozen_rng, undisturbed
from lightning_hessrank.subject.shadow import release, rewound, shadow_copy
from lightning_hessrank.subject.step import Step, StepResult


class Subject:
    """A shadow copy of a network together with the data and the step that give its loss.

    The live module is read once, at construction; nothing done here reaches it.

    Args:
        module: the live module.
        batches: what ``step`` takes, one or more; weighted by their numbers of samples.
        step: gives the loss of one batch.
        dtype: in which everything is computed.
        training: mode of the copy; ``None`` keeps the mode of every submodule as it is.
        seed: of the randomness inside the step; every evaluation draws the same numbers.
        trainer: a Lightning trainer that the step may read.
        total_samples: over which the mean is taken, where other processes hold more of them;
            ``None``: those in ``batches``.

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
        dtype: torch.dtype = torch.float64,
        training: bool | None = None,
        seed: int = 0,
        trainer: Any = None,
        total_samples: int | None = None,
    ) -> None:
        if not batches:
            raise ValueError("there is no reference data: pass at least one batch")
        if not any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"{type(module).__name__} has no parameters that require gradients, so there is no "
                "Hessian to measure; unfreeze some, or remove the monitor"
            )
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and parameter.is_complex():
                raise TypeError(
                    f"parameter {name} is complex: the Hessian is that of real parameters; store "
                    "real and imaginary part and join them with torch.view_as_complex"
                )
        device = _measuring_device(module)
        self.sizes = [batch_size(batch) for batch in batches]
        self.batches = [cast_batch(batch, dtype, device) for batch in batches]
        self.dtype = dtype
        self.device = device
        self.total_samples = sum(self.sizes) if total_samples is None else total_samples
        self._step = step
        self._seed = seed
        with undisturbed():
            self.shadow = shadow_copy(module, dtype=dtype, device=device, trainer=trainer)
        self._live = {id(p) for p in module.parameters()} - {
            id(p) for p in self.shadow.parameters()
        }
        if training is not None:
            self.shadow.train(training)
        self._recurrent = any(isinstance(part, nn.RNNBase) for part in self.shadow.modules())
        named = self.shadow.named_parameters()
        self.parameters: dict[str, Tensor] = {n: p for n, p in named if p.requires_grad}

    @property
    def num_parameters(self) -> int:
        """Trainable parameters."""
        return sum(x.numel() for x in self.parameters.values())

    @property
    def num_samples(self) -> int:
        """Samples in all batches."""
        return sum(self.sizes)

    def has_initial_statistics(self) -> bool:
        """Whether a batch norm is in evaluation mode, but has not seen a batch yet."""
        return any(
            isinstance(part, _NormBase)
            and not part.training
            and part.num_batches_tracked is not None
            and int(part.num_batches_tracked) == 0
            for part in self.shadow.modules()
        )

    def evaluate(self, batch: Any) -> StepResult:
        """Run the step on one (cast) batch; the same value at every call."""
        with ExitStack() as stack:
            stack.enter_context(frozen_rng(self._seed))
            stack.enter_context(differentiable_twice(self.dtype, cudnn=not self._recurrent))
            stack.enter_context(rewound(self.shadow))
            # a step may change its batch in place; bounds differentiate by it, so keep the graph
            result = self._step(self.shadow, map_tensors(batch, torch.clone))
        if result.loss.dtype != self.dtype:
            raise TypeError(
                f"the loss came out in {result.loss.dtype} although all weights and data are "
                f"{self.dtype}: something in the step casts down (.float(), .half(), a float32 "
                "constant given to a loss function); remove it, or pass loss_fn=..."
            )
        return result

    def loss_function(self) -> LossFunction:
        """Return the mean loss over all batches as a function of the trainable parameters."""
        terms = [
            LossTerm(size / self.total_samples, lambda batch=batch: self._evaluation(batch))  # type: ignore[misc]
            for size, batch in zip(self.sizes, self.batches, strict=True)
        ]
        return LossFunction(self.parameters, terms)

    def _check_own_parameters(self, loss: Tensor) -> None:
        """Refuse a step that computes with the live module's parameters, not the copy's."""
        waiting, seen = [loss.grad_fn], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if id(getattr(node, "variable", None)) in self._live:
                raise ValueError(
                    "the loss is computed from the parameters of the live module, not from those "
                    "of the copy that is measured: loss_fn refers to a module outside of it; use "
                    "its first argument instead (loss_fn(module, batch), or model in hessian_rank)"
                )
            waiting.extend(parent for parent, _ in node.next_functions)

    def _evaluation(self, batch: Any) -> Evaluation:
        loss, outputs = self.evaluate(batch)
        self._check_own_parameters(loss)
        return Evaluation(loss, tuple(output.tensor for output in outputs))

    def release(self) -> None:
        """Free the copy's memory now."""
        release(self.shadow)


def _measuring_device(module: nn.Module) -> torch.device:
    device = next(module.parameters()).device
    return torch.device("cpu") if device.type == "mps" else device  # MPS has no float64
