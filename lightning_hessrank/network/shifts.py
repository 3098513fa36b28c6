"""Whether a loss sees only differences of the outputs, as a softmax does: found by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_hessrank.network.losses import LossKind, find_loss, loss_kind

#: Relative size of the gradient along a shift of all channels that passes for zero.
SHIFT_TOLERANCE = 1e-10


def ignores_shifts(
    loss: Tensor, output: Tensor, dim: int, parameters: Mapping[str, Tensor]
) -> bool:
    """Whether the whole loss sees only differences of an output along ``dim``.

    A softmax behind it promises that, unless another part of the loss sees the output as well; then
    the gradient along a common shift is not zero, or not at other weights. A loss that does not see
    the output at all ignores whatever happens to it.
    """
    (signal,) = torch.autograd.grad(loss, output, create_graph=True, materialize_grads=True)
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
        sizes.append(max((float(g.abs().max()) for g in grads if g is not None), default=0.0))
    return sizes[0] <= SHIFT_TOLERANCE * sizes[1]


def kind_of(loss: object, outputs: tuple[Tensor, ...]) -> LossKind:
    """Return what a bound needs to know of a loss, in the table or not.

    One that is not is called as ``loss(outputs, targets)`` with random outputs, and with random
    labels and random numbers like the outputs as targets. It sees every output, ``K' = K``, but one
    a sample less where all of these calls that give a loss ignore a common shift of a sample's
    outputs.

    Args:
        loss: a name, function or module of the table, a :class:`LossKind`, or any callable.
        outputs: of the network, for some samples.

    Raises:
        TypeError: it is no callable, or no such call gives a loss; the message has the last error.
    """
    if isinstance(loss, LossKind):
        return loss
    row = find_loss(loss)
    if row is not None or not callable(loss):
        return loss_kind(loss)
    name = getattr(loss, "__name__", type(loss).__name__)
    if len(outputs) != 1:
        return LossKind(name)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(outputs[0].shape, generator=generator, dtype=torch.float64)
    tried = [_shifted(loss, drawn, targets) for targets in _targets(drawn, generator)]
    found = [dims for dims in tried if not isinstance(dims, Exception)]
    if not found:
        raise TypeError(
            f"loss {name!r} gives no loss for outputs of shape {tuple(drawn.shape)}, neither with "
            f"labels nor with numbers like the outputs as targets (the last error: {tried[-1]}); "
            "pass loss(outputs, targets) -> scalar, or the name of a loss that it is like"
        )
    common = set.intersection(*found)
    return LossKind(name, class_dim=min(common, default=None))


def _targets(outputs: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """What losses take as targets: labels, as many as there are outputs, or numbers like these."""
    for dim in {1, outputs.ndim - 1} & set(range(1, outputs.ndim)):
        shape = [n for i, n in enumerate(outputs.shape) if i != dim]
        yield torch.randint(outputs.shape[dim], shape, generator=generator)
    yield torch.rand(outputs.shape, generator=generator, dtype=outputs.dtype)


def _shifted(loss: Callable[..., Any], outputs: Tensor, targets: Tensor) -> set[int] | Exception:
    """Dimensions of the outputs along which a shift is not seen, or why this is no loss."""
    at = outputs.clone().requires_grad_()
    try:
        value = loss(at, targets)
        scalar = value.sum() if isinstance(value, Tensor) else value
        if not isinstance(scalar, Tensor) or not scalar.requires_grad:
            return TypeError(f"it returned {type(value).__name__} that does not depend on them")
        dims = {1, outputs.ndim - 1} & set(range(1, outputs.ndim))
        return {dim for dim in dims if ignores_shifts(scalar, at, dim, {})}
    except Exception as error:  # the caller's code, tried on what it may not be made for
        return error
