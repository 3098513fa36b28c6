"""Recognise the network's output: the tensor that enters the loss function while a step runs.

Two designs were weighed: forward hooks on the module (miss whatever ``training_step`` does between
``forward`` and the loss, and functional code), and a function mode that sees each call of a known
loss function. The mode needs no help from the user and also tells which loss it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


class OutputRecorder(TorchFunctionMode):
    """While active, remembers what enters the loss functions of ``torch.nn.functional``."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[RecognisedOutput] = []
        # Keyed by id: the tensors stay alive in the graph for as long as this mode is active.
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
        result = func(*args, **kwargs)
        if func in _SOFTMAX:
            source = args[0] if args else kwargs["input"]
            dim = kwargs.get("dim", args[1] if len(args) > 1 else -1)
            self._links[id(result)] = (result, source, source.ndim + dim if dim < 0 else dim)
        elif func in _SIGMOID:
            self._links[id(result)] = (result, args[0] if args else kwargs["input"], None)
        elif func in _LOSSES:
            self._note(_LOSSES[func], [*args, *kwargs.values()])
        return result

    def _note(self, loss: str, arguments: list[Any]) -> None:
        for tensor in arguments:
            if not (isinstance(tensor, Tensor) and tensor.requires_grad):
                continue
            class_dim = None
            if loss == "cross_entropy":
                class_dim = 1 if tensor.ndim > 1 else 0
            _, source, link_dim = self._links.get(id(tensor), (tensor, tensor, None))
            class_dim = class_dim if link_dim is None else link_dim
            if all(source is not known.tensor for known in self.outputs):
                self.outputs.append(RecognisedOutput(source, loss, class_dim))
