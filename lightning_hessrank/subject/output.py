"""Recognise the network's output: the tensor that enters the loss function while a step runs.

Two designs were weighed: forward hooks on the module (miss whatever ``training_step`` does between
``forward`` and the loss, and functional code), and a function mode that sees each call of a known
loss function. The mode needs no help from the user and also tells which loss it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# Loss functions whose differentiable arguments are network outputs.
_LOSSES: dict[Callable[..., Any], str] = {
    F.cross_entropy: "cross_entropy",
    F.nll_loss: "nll_loss",
    F.mse_loss: "mse",
    F.l1_loss: "l1",
    F.smooth_l1_loss: "smooth_l1",
    F.huber_loss: "huber",
    F.binary_cross_entropy_with_logits: "binary_cross_entropy",
    F.binary_cross_entropy: "binary_cross_entropy",
    F.kl_div: "kl_div",
    F.poisson_nll_loss: "poisson_nll",
    F.gaussian_nll_loss: "gaussian_nll",
    F.soft_margin_loss: "soft_margin",
    F.hinge_embedding_loss: "hinge_embedding",
    F.multi_margin_loss: "multi_margin",
    F.multilabel_margin_loss: "multilabel_margin",
    F.multilabel_soft_margin_loss: "multilabel_soft_margin",
    F.cosine_embedding_loss: "cosine_embedding",
    F.margin_ranking_loss: "margin_ranking",
    F.triplet_margin_loss: "triplet_margin",
    F.ctc_loss: "ctc",
}
# Links between the network's output and a loss that expects (log-)probabilities.
_SOFTMAX = {F.log_softmax, torch.log_softmax, Tensor.log_softmax}
_SIGMOID = {torch.sigmoid, Tensor.sigmoid, F.sigmoid}


@dataclass(frozen=True)
class RecognisedOutput:
    """A tensor that entered a loss function."""

    tensor: Tensor
    loss: str
    """Short name of the loss function."""
    class_dim: int | None
    """Dimension along which a common shift leaves the loss unchanged (softmax), or ``None``."""
    place: tuple[int, int] = (-1, 0)
    """Number of the loss call and of the argument: the same in every run of the step."""


class OutputRecorder(TorchFunctionMode):
    """While active, remembers what enters the loss functions of ``torch.nn.functional``.

    A loss gets an alias of each output, a node of its own in the graph, and the alias is what is
    remembered: so a derivative with respect to it is one of the loss alone, even where the network
    goes on from the same tensor to another output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[RecognisedOutput] = []
        self._calls = 0
        # Keyed by id; the tensors are kept with them, since ids are used again.
        self._aliases: dict[int, tuple[Tensor, Tensor]] = {}
        self._links: dict[int, tuple[Tensor, Tensor, int | None]] = {}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run ``func``; note links and outputs."""
        kwargs = kwargs or {}
        if func in _SOFTMAX or func in _SIGMOID:
            name, source = ("", args[0]) if args else ("input", kwargs.get("input"))
            if not _differentiable(source):
                return func(*args, **kwargs)
            alias = self._alias(source)
            kwargs = {**kwargs, name: alias} if name else kwargs
            result = func(*(args if name else (alias, *args[1:])), **kwargs)
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            along = dim % max(source.ndim, 1) if func in _SOFTMAX and dim is not None else None
            self._links[id(result)] = (result, alias, along)
            return result
        if func in _LOSSES:
            loss, call = _LOSSES[func], self._calls
            self._calls += 1
            args = tuple(self._note(loss, (call, i), x) for i, x in enumerate(args))
            named = enumerate(kwargs.items(), start=len(args))
            kwargs = {name: self._note(loss, (call, i), x) for i, (name, x) in named}
        return func(*args, **kwargs)

    def _alias(self, tensor: Tensor) -> Tensor:
        _, alias = self._aliases.setdefault(id(tensor), (tensor, tensor.view_as(tensor)))
        return alias

    def _note(self, loss: str, place: tuple[int, int], argument: Any) -> Any:
        """Remember an argument of a loss, if it is an output; return what the loss gets for it."""
        if not _differentiable(argument):
            return argument
        class_dim = None
        if id(argument) in self._links:
            _, output, class_dim = self._links[id(argument)]
        else:
            argument = output = self._alias(argument)
        if loss == "cross_entropy":
            class_dim = 1 if output.ndim > 1 else 0
        if all(output is not known.tensor for known in self.outputs):
            self.outputs.append(RecognisedOutput(output, loss, class_dim, place))
        return argument


def _differentiable(value: Any) -> TypeGuard[Tensor]:
    """Whether a value depends on parameters; a parameter itself (in a penalty) is no output."""
    return isinstance(value, Tensor) and value.requires_grad and not value.is_leaf
