"""Kinds of modules, batches and steps that people train, each with what the monitor makes of it."""

from __future__ import annotations

import itertools
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.tensorboard import SummaryWriter

REFUSED = "refused"


def numbers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2])


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    group: str
    name: str
    build: Callable[[], Any]
    """Returns the module to fit."""
    batch: Callable[[], Any] = numbers
    monitor: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    outcome: str = "works"
    """``"works"``, or what is said; begins with ``refused`` where nothing is measured."""
    parts: bool = True
    """Whether outer-product and functional part are measured too."""


CASES: list[Case] = []


def case(group: str, name: str, **options: Any) -> Callable[[Callable[[], Any]], Any]:
    """Add a row whose module the decorated function returns."""

    def add(build: Callable[[], Any]) -> Callable[[], Any]:
        CASES.append(Case(group, name, build, **options))
        return build

    return add


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 1, 5, 5, generator=generator), torch.tensor([0, 1, 2, 0])


def tokens() -> tuple[Tensor, Tensor]:
    return torch.tensor([[1, 2, 3], [0, 2, 2], [3, 3, 1]]), torch.tensor([0, 1, 2])


def sequences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 2, 4, generator=generator), torch.tensor([0, 1, 2])


class Module(pl.LightningModule):
    """Classifies; the pieces are replaced in each case."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = nn.Linear(4, 3) if net is None else net

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.net(inputs), labels)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(*batch)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def network(*layers: nn.Module) -> Module:
    return Module(nn.Sequential(*layers))


def compiled_in_place() -> Module:
    module = Module()
    module.net.compile(backend="eager")
    return module


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


# -- batches -----------------------------------------------------------------------------------


@dataclass
class Pair:
    inputs: Tensor
    labels: Tensor


@dataclass(slots=True)
class SlotsPair:
    inputs: Tensor
    labels: Tensor


class Custom:
    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs, self.labels, self.note = inputs, labels, "text"


class Named(NamedTuple):
    inputs: Tensor
    labels: Tensor


class Attributes(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch.inputs, batch.labels)


class Keys(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch["inputs"]["image"][0], batch["labels"])


case("batch", "tuple of tensors")(Module)
case(
    "batch",
    "nested dicts and lists",
    batch=lambda: {
        "inputs": {"image": [numbers()[0]]},
        "labels": numbers()[1],
        "names": list("abcdef"),
    },
)(Keys)
case("batch", "named tuple", batch=lambda: Named(*numbers()))(Attributes)
case("batch", "dataclass", batch=lambda: Pair(*numbers()))(Attributes)
case("batch", "dataclass with slots", batch=lambda: SlotsPair(*numbers()))(Attributes)
case("batch", "object of your own", batch=lambda: Custom(*numbers()))(Attributes)

# -- the step ----------------------------------------------------------------------------------

STEP = "training_step"


@case(STEP, "without `batch_idx`")
class WithoutIndex(Module):
    def training_step(self, batch: Any) -> Any:
        return self.loss(*batch)


@case(STEP, "returns a dict with `loss`")
class ReturnsDict(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return {"loss": self.loss(*batch), "more": 1}


@case(
    STEP,
    "loss written by hand",
    parts=False,
    outcome="the total rank only: no known loss function was seen in the step, so the output of "
    'the network is unknown; return {"loss": loss, "output": output} from training_step or '
    "loss_fn, or use a loss of torch.nn.functional",
)
class OwnLoss(Module):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.net(batch[0]).square().mean()


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


# -- layers ------------------------------------------------------------------------------------

LAYERS = "layer"


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cells, self.head = kind(4, 3, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cells(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attend, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attend(x, x, x, need_weights=False)[0].mean(1))


def encoder() -> Module:
    layer = nn.TransformerEncoderLayer(4, 1, 3, dropout=0.1, batch_first=True)
    return network(layer, nn.Flatten(), nn.Linear(8, 3))


case(LAYERS, "convolution, group norm", batch=images)(
    lambda: network(
        nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)
    )
)
case(LAYERS, "convolution, max pooling", batch=images)(
    lambda: network(nn.Conv2d(1, 2, 3), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(2, 3))
)
case(LAYERS, "LSTM", batch=sequences)(lambda: Module(Recurrent(nn.LSTM)))
case(LAYERS, "GRU", batch=sequences)(lambda: Module(Recurrent(nn.GRU)))
case(LAYERS, "attention", batch=sequences)(lambda: Module(Attention()))
case(LAYERS, "transformer encoder", batch=sequences)(encoder)
case(LAYERS, "embedding", batch=tokens)(
    lambda: network(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 3))
)
case(LAYERS, "embedding with sparse gradients", batch=tokens)(
    lambda: network(nn.Embedding(4, 2, sparse=True), nn.Flatten(), nn.Linear(6, 3))
)


def missing(operation: str) -> str:
    return (
        f"{REFUSED}: {operation} has no second derivative in PyTorch, so that the Hessian of this "
        "step cannot be computed; replace it in the module, or pass loss_fn=... that avoids it"
    )


case(LAYERS, "`EmbeddingBag`", batch=tokens, outcome=missing("embedding_bag"))(
    lambda: network(nn.EmbeddingBag(4, 2), nn.Linear(2, 3))
)
case(LAYERS, "`torch.cdist`", outcome=missing("cdist"))(
    lambda: network(nn.Linear(4, 3), Apply(lambda x: torch.cdist(x, x)[:, :3]))
)
for mode in ("eval", "train"):
    case(LAYERS, f"batch norm, module_mode={mode!r}", monitor={"module_mode": mode})(
        lambda: network(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 3))
    )
    case(LAYERS, f"dropout, module_mode={mode!r}", monitor={"module_mode": mode})(
        lambda: network(nn.Linear(4, 3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 3))
    )
case(LAYERS, "layer norm, GELU")(
    lambda: network(nn.Linear(4, 3), nn.LayerNorm(3), nn.GELU(), nn.Linear(3, 3))
)
case(LAYERS, "spectral norm, weight norm, orthogonal")(
    lambda: network(
        parametrizations.spectral_norm(nn.Linear(4, 4)),
        parametrizations.weight_norm(nn.Linear(4, 3)),
        parametrizations.orthogonal(nn.Linear(3, 3)),
    )
)
case(
    LAYERS,
    "spectral norm, module_mode='train'",
    monitor={"module_mode": "train"},
    outcome=f"{REFUSED}: a Hessian-vector product disagrees with finite differences of the "
    "gradient at every step size (relative error * at best), so the second derivatives of this "
    "step are wrong and no rank is given; no custom autograd function was seen; look for "
    "operations that replace a gradient (straight-through estimators, hooks on tensors) and for "
    "state that the step computes from the weights without gradients (spectral norm in training "
    "mode). Pass "
    "loss_fn=... that avoids them",
)(lambda: network(parametrizations.spectral_norm(nn.Linear(4, 3))))
case(LAYERS, "lazy layers")(lambda: network(nn.LazyLinear(3), nn.Tanh(), nn.LazyLinear(3)))


@case(LAYERS, "tied weights")
def tied() -> Module:
    first, last = nn.Linear(4, 4), nn.Linear(4, 4)
    last.weight = first.weight
    return network(first, nn.Tanh(), last)


@case(LAYERS, "frozen layers")
def frozen() -> Module:
    return network(nn.Linear(4, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 3))


@case(LAYERS, "complex buffer")
class Rotated(Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("turn", torch.polar(torch.ones(2), torch.tensor([0.1, 0.7])))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        turned = torch.view_as_complex(inputs.reshape(-1, 2, 2)) * self.turn
        return super().loss(torch.view_as_real(turned).flatten(1), labels)


@case(
    LAYERS,
    "complex parameter",
    outcome=f"{REFUSED}: parameter phase is complex: the Hessian is that of real parameters; store "
    "real and imaginary part and join them with torch.view_as_complex",
)
class ComplexParameter(Module):
    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(4, dtype=torch.complex64))

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        return super().loss((inputs * self.phase).real, labels)


@case(
    LAYERS,
    "nothing to train",
    trainer={"max_epochs": 1},
    outcome=f"{REFUSED}: NothingToTrain has no parameters that require gradients, so there is no "
    "Hessian to measure; unfreeze some, or remove the monitor",
)
class NothingToTrain(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net.requires_grad_(False)
        self.offset = nn.Parameter(torch.zeros(1), requires_grad=False)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None

    def configure_optimizers(self) -> Any:
        return None


# -- derivatives -------------------------------------------------------------------------------

DERIVATIVES = "derivatives"


def wrong(suspect: str) -> str:
    return (
        f"{REFUSED}: a Hessian-vector product disagrees with finite differences of the gradient at "
        "every step size (relative error * at best), so the second derivatives of this step are "
        f"wrong and no rank is given; the suspects are the custom autograd functions {suspect}. "
        "Pass loss_fn=... that avoids them"
    )


class Doubled(torch.autograd.Function):
    """The gradient of ``x³`` is right, its own derivative is lost on the way over ``.data``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0].data ** 2 * grad


class Once(Doubled):
    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad


case(
    DERIVATIVES,
    "custom function whose second derivative is silently wrong",
    outcome=wrong("Doubled"),
)(lambda: network(nn.Linear(4, 3), Apply(Doubled.apply), nn.Linear(3, 3)))
case(
    DERIVATIVES,
    "custom function, `once_differentiable`",
    outcome=wrong("Once"),
)(lambda: network(nn.Linear(4, 3), Apply(Once.apply), nn.Linear(3, 3)))
for reentrant in (False, True):
    case(DERIVATIVES, f"gradient checkpointing, use_reentrant={reentrant}")(
        lambda reentrant=reentrant: network(
            nn.Linear(4, 3),
            Apply(lambda x: checkpoint(torch.tanh, x, use_reentrant=reentrant)),
            nn.Linear(3, 3),
        )
    )


@case(DERIVATIVES, "ReLU exactly on its kink (zero inputs, zero biases)")
def kink() -> Module:
    first = nn.Linear(4, 3)
    nn.init.zeros_(first.bias)
    return network(Apply(torch.zeros_like), first, nn.ReLU(), nn.Linear(3, 3))


# -- precision ---------------------------------------------------------------------------------

PRECISION = "precision"

for precision in ("bf16-mixed", "bf16-true", "64-true"):
    case(PRECISION, f"`Trainer(precision={precision!r})`", trainer={"precision": precision})(Module)


@case(PRECISION, "`.float()`, `.half()`, float32 constants in the step")
class CastsDown(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        scale = torch.tensor(0.7, dtype=torch.float32) * torch.from_numpy(np.ones(3, "float32"))
        logits = self.net(inputs.to(torch.float32)).float() * scale
        return F.cross_entropy(logits.half().to(torch.float32), labels)


@case(PRECISION, "autocast in the step")
class Autocasts(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return super().loss(inputs, labels)


@case(
    PRECISION,
    "float32 buffer filled in the step",
    outcome=f"{REFUSED}: copy_ in the step turns torch.float64 into torch.float32, and a rank "
    "counted from that would be wrong; remove the cast, or pass loss_fn=... (loss_fn(module, "
    "batch) -> scalar loss)",
)
class Fills(Module):
    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        logits = self.net(inputs)
        return F.cross_entropy(torch.FloatTensor(*logits.shape).copy_(logits), labels)


# -- how the module is run ---------------------------------------------------------------------

EXECUTION = "execution"

case(EXECUTION, "`torch.compile` of the LightningModule")(
    lambda: torch.compile(Module(), backend="eager")
)
case(EXECUTION, "`torch.compile` of a submodule")(
    lambda: Module(torch.compile(nn.Linear(4, 3), backend="eager"))
)
case(EXECUTION, "`module.compile()`")(compiled_in_place)


# -- attributes --------------------------------------------------------------------------------

ATTRIBUTES = "attribute"


class Holds(Module):
    """Uses an attribute in its step that is hard to copy."""

    def __init__(self, held: Any, use: Callable[[Any], object]) -> None:
        super().__init__()
        self.held, self.use = held, use

    def loss(self, inputs: Tensor, labels: Tensor) -> Tensor:
        factor = self.use(self.held)
        scale = factor if isinstance(factor, (float, Tensor)) else 1.0
        return scale * super().loss(inputs, labels)


def scratch_file() -> Any:
    return tempfile.TemporaryFile("w")


def locked(lock: Any) -> None:
    with lock:
        pass


case(ATTRIBUTES, "lock")(lambda: Holds(threading.Lock(), locked))
case(ATTRIBUTES, "open file, written to")(
    lambda: Holds(scratch_file(), lambda file: file.write("step"))
)
case(ATTRIBUTES, "`SummaryWriter`, written to (the copy's is silent)")(
    lambda: Holds([SummaryWriter(tempfile.mkdtemp())], lambda held: held[0].add_scalar("loss", 1.0))
)
case(ATTRIBUTES, "torch generator, drawn from")(
    lambda: Holds(torch.Generator(), lambda held: torch.rand((), generator=held))
)
case(ATTRIBUTES, "numpy generator, drawn from")(
    lambda: Holds(np.random.default_rng(0), lambda held: float(held.random()))
)
case(
    ATTRIBUTES,
    "Python generator, drawn from",
    outcome=f"{REFUSED}: the step draws from a Python generator that is an attribute of the "
    "module: it cannot be copied, and measuring must not advance it; pass loss_fn=... to the "
    "monitor (loss_fn(module, batch) -> scalar loss)",
)(lambda: Holds((float(i) for i in itertools.count(1)), next))
case(ATTRIBUTES, "tensor of an earlier graph, unused")(
    lambda: Holds(torch.ones(2, requires_grad=True) * 2, id)
)
case(
    ATTRIBUTES,
    "tensor of an earlier graph, used",
    outcome="the rank is nan, first at step 0: the loss is nan at a finite output",
)(lambda: Holds(torch.ones((), requires_grad=True) * 2, lambda held: held.detach()))
