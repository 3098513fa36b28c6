"""What a loss does with the output of a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: Relative size of the gradient along a shift of all channels that passes for zero.
SHIFT_TOLERANCE = 1e-10


@dataclass(frozen=True)
class LossKind:
    """What a bound needs to know of the loss: which changes of the output it cannot see."""

    name: str
    class_dim: int | None = None
    """Output dimension along which a common shift leaves the loss unchanged (softmax)."""

    @property
    def identity_curvature(self) -> bool:
        """Whether the Hessian of the loss in the output is a multiple of the identity (MSE)."""
        return self.name == "mse"

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


MSE = LossKind("mse")
CROSS_ENTROPY = LossKind("cross_entropy", class_dim=1)
#: After a log_softmax in the network; where it is not the last operation nothing is redundant.
NLL = LossKind("nll_loss")

_BY_NAME = {
    "mse": MSE,
    "mse_loss": MSE,
    "cross_entropy": CROSS_ENTROPY,
    "nll_loss": NLL,
}
_BY_MODULE = {
    "MSELoss": "mse",
    "CrossEntropyLoss": "cross_entropy",
    "NLLLoss": "nll_loss",
    "BCELoss": "binary_cross_entropy",
    "BCEWithLogitsLoss": "binary_cross_entropy_with_logits",
    "HuberLoss": "huber_loss",
    "KLDivLoss": "kl_div",
    "L1Loss": "l1_loss",
    "MultiLabelSoftMarginLoss": "multilabel_soft_margin_loss",
    "PoissonNLLLoss": "poisson_nll_loss",
    "SmoothL1Loss": "smooth_l1_loss",
    "SoftMarginLoss": "soft_margin_loss",
}
_BY_NAME |= {name: LossKind(name) for name in _BY_MODULE.values() if name not in _BY_NAME}


def loss_kind(loss: object) -> LossKind:
    """Recognise a loss: a name, a :class:`LossKind`, a loss module, or a function of ``torch.nn``.

    Raises:
        TypeError: it is not one of those recognised; the message lists them.
    """
    if isinstance(loss, LossKind):
        return loss
    known = set(_BY_NAME)
    if isinstance(loss, nn.Module) or (isinstance(loss, type) and issubclass(loss, nn.Module)):
        kind = loss if isinstance(loss, type) else type(loss)
        name = next((_BY_MODULE[c.__name__] for c in kind.__mro__ if c.__name__ in _BY_MODULE), "")
    elif isinstance(loss, str):
        name = loss
    else:
        name = getattr(loss, "__name__", "")
        if loss is not getattr(torch.nn.functional, name or "_", None):
            name = ""
    if name not in known:
        given = repr(loss) if isinstance(loss, str) else f"{loss!r} ({type(loss).__name__})"
        raise TypeError(
            f"loss {given} is not recognised; pass one of {', '.join(sorted(known))}, the function "
            "of torch.nn.functional or the module of torch.nn of that name; a loss of your own "
            "that may use every output counts like 'l1_loss', one behind a softmax like "
            "'cross_entropy'"
        )
    return _BY_NAME[name]


def ignores_shifts(
    loss: Tensor, output: Tensor, dim: int, parameters: Mapping[str, Tensor]
) -> bool:
    """Whether the whole loss sees only differences of an output along ``dim``.

    A softmax behind it promises that, unless another part of the loss sees the output as well; then
    the gradient along a common shift is not zero, or not at other weights.
    """
    (signal,) = torch.autograd.grad(loss, output, create_graph=True)
    along = signal.sum(dim)
    sizes = [float(g.detach().abs().max()) for g in (along, signal)]
    if sizes[0] > SHIFT_TOLERANCE * sizes[1]:
        return False
    if not signal.requires_grad:
        return True
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(signal.shape, generator=generator, dtype=torch.float64).to(signal)
    at = [output, *parameters.values()]
    sizes = []
    for scalar in ((along * mixed.select(dim, 0)).sum(), (signal * mixed).sum()):
        grads = torch.autograd.grad(scalar, at, retain_graph=True, allow_unused=True)
        sizes.append(max(float(g.abs().max()) for g in grads if g is not None))
    return sizes[0] <= SHIFT_TOLERANCE * sizes[1]
