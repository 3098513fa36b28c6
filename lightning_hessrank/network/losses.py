"""The one table of losses: what they are called, how they are called, what they cannot see.

Every door that takes a loss, every recorder that looks for the network's output, and the linear
surrogate read this table; a new loss is one row (:func:`add_loss`).

Two designs were weighed: names only, each reader with a list of its own (six lists, which did not
agree), and rows of functions. Rows win: a function can be called, seen in a running step, and has
its name with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

LossCallable = Callable[[Any, Any], Any]
"""``loss_fn(outputs, targets)``."""

Takes = Literal["pair", "mean, target, variance", "outputs", "outputs, target", "output, targets"]
_CALLS: dict[Takes, Callable[[Any, Any], tuple[Any, ...]]] = {
    "pair": lambda outputs, targets: (outputs, targets),
    "outputs": lambda outputs, targets: tuple(outputs),
    "mean, target, variance": lambda outputs, targets: (outputs[0], targets, outputs[1]),
    "outputs, target": lambda outputs, targets: (*outputs, targets),
    "output, targets": lambda outputs, targets: (outputs, *targets),
}


@dataclass(frozen=True)
class LossKind:
    """What a bound needs to know of the loss: which changes of the output it cannot see."""

    name: str
    class_dim: int | None = None
    """Output dimension along which a common shift leaves the loss unchanged (softmax)."""
    identity_curvature: bool = False
    """Whether the Hessian of the loss in the output is a multiple of the identity (MSE)."""
    takes_log_softmax: bool = False
    """Whether behind a ``log_softmax`` it sees only differences of what that sees."""

    def effective_outputs(self, output: Tensor, num_samples: int) -> int:
        """Number ``K'`` of directions per sample, in output space, that the loss can see."""
        per_sample = output.numel() // num_samples
        if self.class_dim is None or not per_sample:
            return per_sample
        return per_sample - per_sample // output.shape[self.class_dim]

    def project(self, cotangent: Tensor) -> Tensor:
        """Remove from an output cotangent what no gradient of this loss can contain."""
        if self.class_dim is None:
            return cotangent
        return cotangent - cotangent.mean(self.class_dim, keepdim=True)


@dataclass(frozen=True)
class Loss:
    """A row of the table."""

    name: str
    function: Callable[..., Tensor]
    """As a running step calls it."""
    module: str = ""
    """Name of the class of ``torch.nn`` that calls it."""
    takes: Takes = "pair"
    """How its arguments are made of ``(outputs, targets)``."""
    has_softmax: bool = False
    """Whether it takes logits and sees only differences of them."""
    takes_log_softmax: bool = False
    """Whether it expects a ``log_softmax``: behind one, it too sees only differences."""
    identity_curvature: bool = False
    """Whether its Hessian in the output is a multiple of the identity."""

    @property
    def kind(self) -> LossKind:
        """What a bound needs to know of it."""
        return LossKind(
            self.name,
            1 if self.has_softmax else None,
            self.identity_curvature,
            self.takes_log_softmax or self.has_softmax,
        )

    def class_dim(self, output: Tensor) -> int | None:
        """Dimension of an output along which the loss sees only differences, by itself."""
        return (1 if output.ndim > 1 else 0) if self.has_softmax else None

    def arguments(self, outputs: Any, targets: Any) -> tuple[Any, ...]:
        """Return the arguments of :attr:`function`."""
        return _CALLS[self.takes](outputs, targets)


#: By function, the rows of the table.
TABLE: dict[Callable[..., Any], Loss] = {}
_BY_NAME: dict[str, Loss] = {}
_BY_MODULE: dict[str, Loss] = {}


def add_loss(
    function: Callable[..., Tensor], name: str | None = None, *, module: str = "", **facts: Any
) -> Callable[..., Tensor]:
    """Add a loss to the table, from inside the package or outside.

    Args:
        function: what a step calls.
        name: by which it is known; ``None``: that of the function. With and without ``_loss`` at
            the end, both are understood.
        module: name of the module class that calls it.
        facts: further fields of :class:`Loss`.

    Returns:
        What a step has to call to be seen: the function itself where that is one of PyTorch, else
        it with a dispatch around.

    Raises:
        ValueError: the name is taken by another function.
    """
    name = function.__name__ if name is None else name
    seen = function if _is_dispatched(function) else _dispatched(function)
    row = Loss(name, seen, module, **facts)
    names = {name, function.__name__, name.removesuffix("_loss")}
    for known in names:
        if known in _BY_NAME and _BY_NAME[known].name != name:
            raise ValueError(f"the loss {known!r} is in the table already")
    TABLE[seen] = row
    _BY_NAME.update(dict.fromkeys(names, row))
    if module:
        _BY_MODULE[module] = row
    return seen


def _is_dispatched(function: Callable[..., Any]) -> bool:
    return getattr(function, "__module__", "") in {F.__name__, "torch"} or hasattr(
        function, "__wrapped__"
    )


def _dispatched(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let function modes see the calls of a function, as they see those of PyTorch's own."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Tensor:
        tensors = tuple(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        if has_torch_function(tensors):
            result: Tensor = handle_torch_function(call, tensors, *args, **kwargs)
            return result
        return function(*args, **kwargs)

    return call


for _function, _module, _facts in (
    (F.mse_loss, "MSELoss", {"name": "mse", "identity_curvature": True}),
    (F.cross_entropy, "CrossEntropyLoss", {"has_softmax": True}),
    (F.nll_loss, "NLLLoss", {"takes_log_softmax": True}),
    (F.l1_loss, "L1Loss", {}),
    (F.smooth_l1_loss, "SmoothL1Loss", {}),
    (F.huber_loss, "HuberLoss", {}),
    (F.binary_cross_entropy_with_logits, "BCEWithLogitsLoss", {}),
    (F.binary_cross_entropy, "BCELoss", {}),
    (F.kl_div, "KLDivLoss", {"takes_log_softmax": True}),
    (F.poisson_nll_loss, "PoissonNLLLoss", {}),
    (F.gaussian_nll_loss, "GaussianNLLLoss", {"takes": "mean, target, variance"}),
    (F.soft_margin_loss, "SoftMarginLoss", {}),
    (F.hinge_embedding_loss, "HingeEmbeddingLoss", {}),
    (F.multi_margin_loss, "MultiMarginLoss", {}),
    (F.multilabel_margin_loss, "MultiLabelMarginLoss", {}),
    (F.multilabel_soft_margin_loss, "MultiLabelSoftMarginLoss", {}),
    (F.cosine_embedding_loss, "CosineEmbeddingLoss", {"takes": "outputs, target"}),
    (F.margin_ranking_loss, "MarginRankingLoss", {"takes": "outputs, target"}),
    (F.triplet_margin_loss, "TripletMarginLoss", {"takes": "outputs"}),
    (
        F.triplet_margin_with_distance_loss,
        "TripletMarginWithDistanceLoss",
        {"takes": "outputs"},
    ),
    (F.ctc_loss, "CTCLoss", {"takes": "output, targets"}),
):
    add_loss(_function, module=_module, **_facts)


def names() -> list[str]:
    """Return every name in the table, one for each loss."""
    return sorted({row.name for row in TABLE.values()})


def find_loss(loss: object) -> Loss | None:
    """Find the row of a loss: by name, function, module or class of modules; ``None``: no row."""
    if isinstance(loss, str):
        return _BY_NAME.get(loss)
    kind = loss if inspect.isclass(loss) else type(loss)
    if issubclass(kind, nn.Module):
        return next(
            (_BY_MODULE[c.__name__] for c in kind.__mro__ if c.__name__ in _BY_MODULE), None
        )
    return TABLE.get(loss) if callable(loss) else None


def known_loss(loss: object) -> Loss:
    """Do the same, or raise.

    Raises:
        TypeError: it is not in the table; the message lists what is.
    """
    row = find_loss(loss)
    if row is None:
        given = repr(loss) if isinstance(loss, str) else f"{loss!r} ({type(loss).__name__})"
        raise TypeError(
            f"loss {given} is not recognised; pass one of {', '.join(names())}, the function of "
            "torch.nn.functional or the module of torch.nn of that name; a loss of your own that "
            "may use every output counts like 'l1_loss', one behind a softmax like 'cross_entropy'"
        )
    return row


def loss_kind(loss: object) -> LossKind:
    """Return what a bound needs to know of a loss, or of a :class:`LossKind`.

    Raises:
        TypeError: it is not in the table.
    """
    return loss if isinstance(loss, LossKind) else known_loss(loss).kind


def loss_function(loss: object) -> LossCallable:
    """Return a loss as ``loss_fn(outputs, targets)``.

    Args:
        loss: a name in the table, a function or module that it knows (called in the way that suits
            it), a class of loss modules, or any ``loss_fn(outputs, targets)``.

    Raises:
        TypeError: it is none of these.
    """
    row = find_loss(loss)
    if row is None:
        if isinstance(loss, str):
            known_loss(loss)  # says what there is
        if not callable(loss):
            raise TypeError(
                "loss_fn must be a function loss_fn(outputs, targets) -> scalar, or the name of a "
                f"loss such as 'mse', got {loss!r}"
            )
        return loss
    call: Any = row.function if isinstance(loss, str) else loss() if inspect.isclass(loss) else loss
    if row.takes == "pair":
        return call
    return lambda outputs, targets: call(*row.arguments(outputs, targets))
