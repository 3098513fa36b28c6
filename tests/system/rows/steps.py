"""Rows: kinds of training steps."""

from __future__ import annotations

from typing import Any

import torch

from tests.system.rows.base import (
    REFUSED,
    Module,
    case,
)

STEP = "training_step"


@case(STEP, "without `batch_idx`")
class WithoutIndex(Module):
    def training_step(self, batch: Any) -> Any:
        return self.loss(*batch)


@case(STEP, "returns a dict with `loss`")
class ReturnsDict(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.loss(*batch), "more": 1}


@case(STEP, "loss written by hand")
class OwnLoss(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).square().mean()


@case(STEP, "loss written by hand, of two outputs, one computed from the other")
class TwoOutputs(Module):
    def __init__(self) -> None:
        super().__init__()
        self.decoder = torch.nn.Linear(3, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        latent = self.net(batch[0])
        return (self.decoder(latent) - batch[0]).pow(2).mean() + latent.pow(4).mean()


@case(STEP, "a known loss called for logging only")
class Logging(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self.net(batch[0])
        self.log("size", torch.nn.functional.l1_loss(output, torch.zeros_like(output)))
        return output.square().mean()


@case(
    STEP,
    "loss written by hand, of parameters outside of modules",
    parts=False,
    outcome="the total rank only, without parts and bound: no known loss function was seen in the "
    "step, nor results of modules through which all of the loss depends on the parameters, so the "
    'output of the network is unknown; return {"loss": loss, "output": output} from training_step '
    "or loss_fn, or use a loss of torch.nn.functional",
)
class FunctionalLoss(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return (batch[0] @ self.net.weight.T + self.net.bias).square().mean()


@case(STEP, "detached targets, held fixed")
class Detached(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output, target = self.net(batch[0]), self.net(batch[0] + 0.1).detach()
        return torch.nn.functional.mse_loss(output.tanh(), target)


@case(STEP, "loss written by hand, output named")
class NamedOutput(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        output = self.net(batch[0])
        return {"loss": output.square().mean(), "output": output}


PENALTY = (
    "the loss has a part that does not pass through the network's output (a weight penalty, or a "
    "loss function that was not recognised), to which no bound applies; the total rank includes "
    "it. Pass loss_fn=... to measure the data loss alone"
)


@case(STEP, "weight penalty written with a known loss", outcome=PENALTY)
class KnownPenalty(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        gram = self.net.weight @ self.net.weight.T
        return self.loss(*batch) + torch.nn.functional.mse_loss(gram, torch.eye(3).to(gram))


class Penalised(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(*batch) + 1e-4 * sum(p.square().sum() for p in self.parameters())


case(STEP, "weight penalty in the loss", outcome=PENALTY)(Penalised)
case(STEP, "weight penalty, with `loss_fn`", monitor={"loss_fn": lambda m, batch: m.loss(*batch)})(
    Penalised
)


@case(
    STEP,
    "returns nothing",
    outcome=f"{REFUSED}: training_step returned None, so there is no loss to differentiate; return "
    "the loss, or pass loss_fn=... (loss_fn(module, batch) -> scalar loss)",
)
class ReturnsNothing(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


@case(
    STEP,
    "takes `dataloader_iter`",
    outcome=f"{REFUSED}: training_step(dataloader_iter) fetches its own batches, so it cannot be "
    "evaluated on reference data; pass loss_fn=... to the monitor: loss_fn(module, batch) -> "
    "scalar loss",
)
class Iterating(Module):
    def training_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return self.loss(*batch)


class Manual(Module):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(*batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD([p], lr=0.01) for p in self.parameters()]


case(
    STEP,
    "manual optimisation, several optimisers",
    outcome=f"{REFUSED}: the module uses manual optimisation, so its training_step is not a loss "
    "function; pass loss_fn=... to the monitor: loss_fn(module, batch) -> scalar loss",
)(Manual)
case(
    STEP,
    "manual optimisation, several optimisers, with `loss_fn`",
    monitor={"loss_fn": lambda module, batch: module.loss(*batch)},
)(Manual)


@case(STEP, "changes its batch in place")
class ChangesBatch(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batch[0].mul_(0.5)
        return self.loss(*batch)


@case(STEP, "reads the trainer, learning rate and logger")
class Reads(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        rate = self.optimizers().param_groups[0]["lr"]
        weight = 1 + self.trainer.current_epoch + self.trainer.global_step + rate
        self.log_dict({"weight": weight})
        if self.logger is not None:
            self.logger.log_metrics({"weight": weight})
        return weight * self.loss(*batch)
