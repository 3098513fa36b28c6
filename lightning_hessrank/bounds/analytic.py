"""The generic rank of the network itself, where it is analytic in weights and data.

A minor of the Hessian of such a network is an analytic function of weights, data and residuals. If
it does not vanish everywhere, it vanishes on a set of measure zero. So the rank at random weights,
data and residuals is, with probability one, the largest over all of them, of that shape and number:
an upper bound for every training run, attention included. Loss and targets enter through residuals
``r_n`` and curvatures ``C_n`` by the outputs only; random ones stand for those of any loss that
sees as much of the outputs.

Units that switch (ReLU, maxima) are not analytic: what random weights show may be exceeded where
other units are on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from lightning_hessrank.bounds.inputs import flatten
from lightning_hessrank.bounds.live import Mixtures, gradients
from lightning_hessrank.network.autograd import graph_nodes, pull_back_somehow
from lightning_hessrank.network.function import Network, layers_of
from lightning_hessrank.network.losses import LossKind
from lightning_hessrank.results import BoundNotAvailableError, LayerBound, RankBound
from lightning_hessrank.tolerance import machine_rtol, numerical_rank

#: Parameters up to which the Hessian is formed.
MAX_PARAMETERS = 500
#: Random draws that have to agree.
DRAWS = 3
#: Operations of the graph that are analytic, by the name of their node: linear ones and views,
_LINEAR = (
    "AccumulateGrad Add Addmm Alias Baddbmm Bmm Cat Clone Convolution Dot Einsum Expand Mean Mm Mul"
    " Mv Neg Permute PixelShuffle Repeat Reshape Roll Select Slice Split SplitWithSizes Squeeze"
    " Stack Sub Sum T ToCopy Transpose Unbind Unsqueeze UnsafeView View AvgPool1D AvgPool2D"
    " AvgPool3D AdaptiveAvgPool2D MkldnnConvolution Embedding Index IndexSelect Unfold"
    " ConstantPadNd Flip ReshapeAlias AsStrided Unflatten Tril Triu"
)
#: and smooth ones.
_SMOOTH = (
    "Cos Erf Exp Gelu LogSigmoid LogSoftmax Mish NativeBatchNorm NativeGroupNorm NativeLayerNorm"
    " ScaledDotProductAttention ScaledDotProductFlashAttentionForCpu Sigmoid Silu Sin Softmax"
    " Softplus Tanh"
)
ANALYTIC = frozenset((_LINEAR + " " + _SMOOTH).split())


def analytic_bound(
    network: Network, loss: LossKind, *, num_samples: int | None = None, seed: int = 0
) -> RankBound:
    """Bound the ranks by those at random weights, data and residuals.

    Args:
        network: whose weights are exchanged, and restored.
        loss: what it can see of the output.
        num_samples: of the data; ``None``: any number.
        seed: of the random draws.

    Raises:
        BoundNotAvailableError: the network is not analytic, too large, or draws do not agree; the
            message says which.
    """
    if network.fixes_integers():
        raise BoundNotAvailableError(
            "the generic rank of the network itself is that for the integers (tokens) of a batch, "
            "and other data may have others (batch_bound holds for all that it is given)"
        )
    p = sum(x.numel() for x in network.parameters.values())
    if p > MAX_PARAMETERS:
        raise BoundNotAvailableError(
            f"the generic rank of the network itself is found for up to {MAX_PARAMETERS} "
            f"parameters, this one has {p:,}"
        )
    found = []
    for draw in range(DRAWS):
        with _random_weights(network, seed + draw) as mixed:
            found.append(_ranks(network, loss, num_samples, mixed))
    if len(set(found)) > 1:
        raise BoundNotAvailableError(
            f"the ranks of {DRAWS} random draws do not agree ({', '.join(map(str, found))}), so "
            "that rounding hides the generic rank"
        )
    total, outer, functional, outputs = found[0]
    layers = tuple(
        LayerBound(layer, size, min(size, functional))
        for layer, names in layers_of(network.parameters).items()
        for size in [sum(network.parameters[name].numel() for name in names)]
    )
    return RankBound(
        total=total,
        outer=outer,
        functional=functional,
        layers=layers,
        num_parameters=p,
        kind="generic",
        is_theorem=True,
        reason=(
            "The network is analytic in its weights and inputs, so its rank at random ones, where "
            f"{DRAWS} draws agree, is the largest that any have."
        ),
        num_samples=num_samples,
        outputs=outputs,
    )


@contextmanager
def _random_weights(network: Network, seed: int) -> Iterator[Mixtures]:
    mixed, own = Mixtures(seed), list(network.parameters.values())
    kept = [x.detach().clone() for x in own]
    try:
        with torch.no_grad():
            for x, value in zip(own, mixed(own), strict=True):
                fan_in = x[0].numel() if x.ndim > 1 else 1
                x.copy_(value / math.sqrt(max(1, fan_in)))
        yield mixed
    finally:
        with torch.no_grad():
            for x, value in zip(own, kept, strict=True):
                x.copy_(value)


def _ranks(
    network: Network, loss: LossKind, num_samples: int | None, mixed: Mixtures
) -> tuple[int, int, int, int]:
    """Total, outer, functional rank, and effective outputs per sample."""
    own = list(network.parameters.values())
    p = sum(x.numel() for x in own)
    with torch.enable_grad():
        few = network.forward(tuple(x.detach() for x in network.inputs))
        _check_analytic(few)
        size = len(network.inputs[0])
        per_sample = sum(loss.effective_outputs(f, size) for f in few)
        count = -(-p // max(1, per_sample)) + 1 if num_samples is None else num_samples
        shapes = [x.detach().new_zeros(count, *x.shape[1:]) for x in network.inputs]
        inputs = tuple(x.requires_grad_() for x in mixed(shapes))
        outputs = network.forward(inputs)
        if num_samples is None:
            _check_separate(outputs, inputs)
        residuals = [loss.project(x) for x in mixed(outputs)]
        slopes = gradients(outputs, own, residuals, create_graph=True)
    unit = torch.eye(p, dtype=own[0].dtype, device=own[0].device)
    units = [u.reshape(p, *x.shape) for u, x in zip(unit.split(_sizes(own), 1), own, strict=True)]
    functional = _flat(pull_back_somehow(slopes, own, units))
    rows = _rows_seen(outputs, own, loss, mixed)
    outer = rows.T @ rows
    total = functional / functional.norm().clamp(min=1e-300) + outer / outer.norm()
    return (
        numerical_rank(torch.linalg.eigvalsh((total + total.T) / 2)).rank,
        numerical_rank(torch.linalg.svdvals(rows), machine_rtol(max(rows.shape))).rank,
        numerical_rank(torch.linalg.eigvalsh((functional + functional.T) / 2)).rank,
        per_sample,
    )


def _rows_seen(
    outputs: tuple[Tensor, ...], own: list[Tensor], loss: LossKind, mixed: Mixtures
) -> Tensor:
    """``B J`` with random ``BᵀB = C``, a curvature of what the loss sees."""
    rows = []
    for f in outputs:
        units = torch.eye(f.numel(), dtype=f.dtype, device=f.device).reshape(-1, *f.shape)
        seen = torch.stack([loss.project(u) for u in units])
        if not loss.identity_curvature:
            seen = seen * (1 + mixed([f])[0].square().flatten().reshape(-1, *(1,) * f.ndim))
        rows.append(_flat(pull_back_somehow((f,), own, (seen,))))
    return torch.cat(rows)


def _flat(pieces: list[Tensor]) -> Tensor:
    return flatten(pieces).detach().to("cpu", torch.float64)


def _sizes(own: list[Tensor]) -> list[int]:
    return [x.numel() for x in own]


def _check_separate(outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> None:
    """Check that the first sample's outputs depend on its own inputs only."""
    count = len(inputs[0])
    whole = all(f.numel() % count == 0 for f in outputs)
    first = [f.reshape(count, -1)[0].sum() for f in outputs] if whole else outputs
    if not whole or any(bool(x[1:].any()) for x in gradients(first, inputs)):
        raise BoundNotAvailableError(
            "the network's output for one sample depends on other samples of the batch, so "
            "that there is no bound from its architecture alone; pass data=..."
        )


def _check_analytic(outputs: tuple[Tensor, ...]) -> None:
    kinds = {node.name().split("::")[-1].split("Backward")[0] for node in graph_nodes(outputs)}
    other = sorted(kinds - ANALYTIC)
    if other:
        raise BoundNotAvailableError(
            f"the network is not known to be analytic in its weights: it has {', '.join(other)} "
            "(ReLU and max pooling are not analytic), so that its rank at random weights bounds "
            "nothing"
        )
