"""Steps: a loss and the outputs it came from, or words that say why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.subject.step import UnusableStepError, model_step, module_step
from lightning_hessrank.subject.trainer_view import ManualOptimizationError

BATCH = (torch.ones(3, 2), torch.zeros(3, 1))


class Steps(nn.Linear):
    """As a ``LightningModule`` has them."""

    automatic_optimization = True

    def __init__(self) -> None:
        super().__init__(2, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.mse_loss(self(batch[0]), batch[1])


def test_the_same_loss_whoever_calls() -> None:
    net = Steps()
    of_module, of_model = module_step(net)(net, BATCH), model_step(F.mse_loss)(net, BATCH)
    own = module_step(net, lambda module, batch: F.mse_loss(module(batch[0]), batch[1]))(net, BATCH)
    for result in (of_module, of_model, own):
        assert torch.equal(result.loss, F.mse_loss(net(BATCH[0]), BATCH[1]))
        (output,) = result.outputs
        assert torch.equal(output.tensor, net(BATCH[0]))


def test_a_step_that_is_not_watched_gives_the_same_loss_alone() -> None:
    def active(module: nn.Module, batch: Any) -> Tensor:
        seen.append(torch.overrides._get_current_function_mode())
        return F.mse_loss(module(batch[0]), batch[1])

    net, seen = Steps(), list[Any]()
    steps = [
        module_step(net, watched=False),
        model_step(F.mse_loss, watched=False),
        module_step(net, active, watched=False),
    ]
    for step in steps:
        result = step(net, BATCH)
        assert torch.equal(result.loss, F.mse_loss(net(BATCH[0]), BATCH[1]))
        assert (result.outputs, result.at, result.settled) == ((), None, True)
    module_step(net, active)(net, BATCH)
    assert [mode is None for mode in seen] == [True, False]


def test_a_named_output_is_the_output() -> None:
    def loss_fn(outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        hidden = outputs * 2
        return {"loss": F.mse_loss(hidden, targets), "output": hidden}

    (output,) = model_step(loss_fn)(Steps(), BATCH).outputs
    assert output.tensor.grad_fn is not None
    assert "Mul" in type(output.tensor.grad_fn).__name__


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda loss: None, ValueError, "^loss_fn returned None, so there is no loss"),
        (lambda loss: 3.0, TypeError, "^loss_fn must return a tensor or a dict .*, got float$"),
        (lambda loss: {"l": loss}, ValueError, r'^loss_fn returned a dict without "loss" \(keys:'),
        (lambda loss: loss.repeat(2), ValueError, r"^loss_fn returned a loss of shape \(2,\);"),
        (lambda loss: loss.detach(), ValueError, "^the loss of loss_fn does not depend on any"),
    ],
)
def test_what_is_no_loss_is_refused(
    result: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model_step(lambda f, y: result(F.mse_loss(f, y)))(Steps(), BATCH)


def test_modules_without_a_step_of_a_batch_are_refused() -> None:
    manual = Steps()
    manual.automatic_optimization = False
    with pytest.raises(ManualOptimizationError, match=r"manual optimisation.*loss_fn="):
        module_step(manual)

    class Fetching(Steps):
        def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
            return None

    with pytest.raises(UnusableStepError, match=r"fetches its own batches.*loss_fn="):
        module_step(Fetching())
