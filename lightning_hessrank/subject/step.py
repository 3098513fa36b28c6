"""Steps: from a module and a batch to a loss and the network outputs that it was computed from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from lightning_hessrank.network.batches import list_tensors, map_tensors
from lightning_hessrank.subject.output import OutputRecorder, RecognisedOutput
from lightning_hessrank.subject.trainer_view import ManualOptimizationError

LossFn = Callable[..., Any]


class UnusableStepError(TypeError):
    """The step does not take a batch, so that it cannot be evaluated on reference data."""


class StepResult(NamedTuple):
    """What a step gave."""

    loss: Tensor
    """Scalar, with its graph."""
    outputs: tuple[RecognisedOutput, ...]
    """Empty where no known loss function was seen."""


Step = Callable[[nn.Module, Any], StepResult]


def module_step(module: nn.Module, loss_fn: LossFn | None = None) -> Step:
    """Return the step of a ``LightningModule``: its ``training_step``, or the user's ``loss_fn``.

    Raises:
        ManualOptimizationError: the module steps its optimisers itself and there is no ``loss_fn``.
        UnusableStepError: the ``training_step`` cannot be called with a batch.
    """
    if loss_fn is not None:
        return lambda shadow, batch: _record("loss_fn", lambda: loss_fn(shadow, batch))
    if not getattr(module, "automatic_optimization", True):
        raise ManualOptimizationError(
            "the module uses manual optimisation, so its training_step is not a loss function; "
            "pass loss_fn=... to the monitor: loss_fn(module, batch) -> scalar loss"
        )
    training_step: Any = module.training_step
    parameters = inspect.signature(training_step).parameters
    if "dataloader_iter" in parameters:
        raise UnusableStepError(
            "training_step(dataloader_iter) fetches its own batches, so it cannot be evaluated on "
            "reference data; pass loss_fn=... to the monitor: loss_fn(module, batch) -> scalar loss"
        )
    takes_index = "batch_idx" in parameters or len(parameters) > 1
    arguments = (0,) if takes_index else ()

    def step(shadow: Any, batch: Any) -> StepResult:
        return _record("training_step", lambda: shadow.training_step(batch, *arguments))

    return step


def model_step(loss_fn: Callable[[Any, Any], Tensor]) -> Step:
    """Return the step ``loss_fn(model(inputs), targets)`` on batches ``(inputs, targets)``.

    The outputs are what the model returns, whatever the loss makes of it.
    """

    def step(model: nn.Module, batch: Any) -> StepResult:
        inputs, targets = batch
        outputs = map_tensors(model(inputs), lambda x: x.view_as(x))  # see OutputRecorder
        loss, _ = _record("loss_fn", lambda: loss_fn(outputs, targets))
        tensors = [x for x in list_tensors(outputs) if x.requires_grad]
        return StepResult(loss, tuple(RecognisedOutput(x, "custom", None) for x in tensors))

    return step


def _record(name: str, call: Callable[[], Any]) -> StepResult:
    with OutputRecorder() as recorder:
        result = call()
    loss, named = _loss_of(name, result)
    outputs = tuple(recorder.outputs)
    if not outputs and _is_output(named, loss):
        outputs = (RecognisedOutput(named, "named", None),)
    return StepResult(loss, outputs)


def _is_output(named: Any, loss: Tensor) -> TypeGuard[Tensor]:
    """Whether what the user returned as ``"output"`` (for logging, maybe) is what the loss sees."""
    if not (isinstance(named, Tensor) and named.is_floating_point() and named.requires_grad):
        return False
    (gradient,) = torch.autograd.grad(loss, named, allow_unused=True, retain_graph=True)
    return gradient is not None


def _loss_of(name: str, result: Any) -> tuple[Tensor, Any]:
    """Return the scalar loss of a step's result, and what it calls its output."""
    output = None
    if isinstance(result, Mapping):
        if "loss" not in result:
            raise ValueError(f'{name} returned a dict without "loss" (keys: {sorted(result)})')
        output = result.get("output")
        result = result["loss"]
    if result is None:
        raise ValueError(
            f"{name} returned None, so there is no loss to differentiate; return the loss, or pass "
            "loss_fn=... (loss_fn(module, batch) -> scalar loss)"
        )
    if not isinstance(result, Tensor):
        raise TypeError(
            f"{name} must return a tensor or a dict with one, got {type(result).__name__}"
        )
    if result.numel() != 1:
        raise ValueError(
            f"{name} returned a loss of shape {tuple(result.shape)}; its Hessian needs a scalar: "
            "reduce it, e.g. with .mean()"
        )
    if not result.requires_grad:
        raise ValueError(
            f"the loss of {name} does not depend on any trainable parameter (no gradient flows); "
            "look for .detach(), torch.no_grad() or frozen parameters"
        )
    return result.reshape(()), output
