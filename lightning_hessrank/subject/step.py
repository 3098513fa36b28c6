"""Steps: from a module and a batch to a loss and the network outputs that it was computed from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeGuard

from torch import Tensor, nn

from lightning_hessrank.network.batches import list_tensors
from lightning_hessrank.network.pairs import call
from lightning_hessrank.subject.output import (
    OutputRecorder,
    Place,
    RecognisedOutput,
    choose_outputs,
    reaches,
)
from lightning_hessrank.subject.returns import Returned, ReturnRecorder, entangled, frontier
from lightning_hessrank.subject.trainer_view import ManualOptimizationError

LossFn = Callable[..., Any]


class UnusableStepError(TypeError):
    """The step does not take a batch, so that it cannot be evaluated on reference data."""


class StepResult(NamedTuple):
    """What a step gave."""

    loss: Tensor
    """Scalar, with its graph."""
    outputs: tuple[RecognisedOutput, ...]
    """Through which it depends on the parameters; empty where they are unknown."""
    at: Callable[[Place], Tensor] | None = None
    """Tensor that was seen at a place of this run."""
    settled: bool = True
    """Whether the step need not run again to give its outputs as they are."""


Step = Callable[[nn.Module, Any], StepResult]


def module_step(module: nn.Module, loss_fn: LossFn | None = None, *, watched: bool = True) -> Step:
    """Return the step of a ``LightningModule``: its ``training_step``, or the user's ``loss_fn``.

    Args:
        module: whose step it is.
        loss_fn: the user's own.
        watched: whether outputs are sought, for which every call of PyTorch inside is looked at.

    Raises:
        ManualOptimizationError: the module steps its optimisers itself and there is no ``loss_fn``.
        UnusableStepError: the ``training_step`` cannot be called with a batch.
    """
    if loss_fn is not None:
        return _Step("loss_fn", lambda shadow, batch, _: (loss_fn(shadow, batch), ()), watched)
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

    def run(shadow: Any, batch: Any, recorder: OutputRecorder) -> tuple[Any, Sequence[Tensor]]:
        return shadow.training_step(batch, *arguments), ()

    return _Step("training_step", run, watched)


def model_step(loss_fn: Callable[[Any, Any], Any], *, watched: bool = True) -> Step:
    """Return the step ``loss_fn(model(inputs), targets)`` on batches ``(inputs, targets)``.

    Where the loss itself does not say what its output is, that is what the model returns.
    """

    def run(model: Any, batch: Any, recorder: OutputRecorder) -> tuple[Any, list[Tensor]]:
        inputs, targets = batch
        outputs = recorder.returned(call(model, inputs))
        return loss_fn(outputs, targets), list_tensors(outputs)

    return _Step("loss_fn", run, watched)


class _Step:
    """Runs a step and finds its outputs.

    Args:
        name: of what gives the loss.
        run: from module, batch and the recorder that watches, to what gives the loss and what the
            model returned, if that is known.
        watched: whether outputs are sought.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Any, Any, OutputRecorder], tuple[Any, Sequence[Tensor]]],
        watched: bool = True,
    ) -> None:
        self._name, self._watched = name, watched
        self._run = run
        # Calls of modules whose results are outputs, some of which are computed from others.
        self._gated: frozenset[int] = frozenset()

    def __call__(self, module: nn.Module, batch: Any) -> StepResult:
        """Run once; where gates have to be put between outputs, the next run has them."""
        recorder = OutputRecorder(batch)
        if not self._watched:
            result, _ = self._run(module, batch, recorder)
            return StepResult(_loss_of(self._name, result)[0], ())
        with ReturnRecorder(module, self._gated, recorder.watch) as modules, recorder:
            result, returned = self._run(module, batch, recorder)
        loss, named = _loss_of(self._name, result)
        for x in modules.returned:
            recorder.keep(Place("module", x.call, x.number), x.tensor)
        nearest: list[Returned] = []

        def guess() -> tuple[RecognisedOutput, ...]:
            nearest.extend(frontier(loss, modules.returned))
            places = ((Place("module", x.call, x.number), x.tensor) for x in nearest)
            return recorder.outputs_of(places)

        outputs = choose_outputs(
            loss,
            (
                recorder.outputs_of(_places("named", [named], loss)),
                tuple(x for x in recorder.recognised if _is_output(x.tensor, loss)),
                recorder.outputs_of(_places("returned", returned, loss)),
            ),
            guess,
        )
        guessed = is_guess(outputs)
        gated, self._gated = self._gated, entangled(nearest) if guessed else frozenset()
        return StepResult(loss, outputs, recorder.at, settled=gated == self._gated)


def is_guess(outputs: Sequence[RecognisedOutput]) -> bool:
    """Whether outputs are what the last modules returned, since nothing else told them."""
    return any(x.place.kind == "module" for x in outputs)


def _places(
    kind: Literal["named", "returned"], tensors: Sequence[Any], loss: Tensor
) -> list[tuple[Place, Tensor]]:
    return [(Place(kind, i), x) for i, x in enumerate(tensors) if _is_output(x, loss)]


def _is_output(named: Any, loss: Tensor) -> TypeGuard[Tensor]:
    """Whether a tensor (returned as ``"output"`` for logging, maybe) is one that the loss sees."""
    if not (isinstance(named, Tensor) and named.is_floating_point() and named.requires_grad):
        return False
    return reaches(loss, named)


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
