"""Bounds of the functional part from blocks of parameters in which the outputs are affine.

Let the outputs be jointly affine in the parameters ``S``: the last layer of any network, any one
layer of a piecewise linear chain. Then ``H_f`` is zero on ``S``, with ``B`` the block beside it

    H_f = [[A, B], [Bᵀ, 0]],    rank(H_f) ≤ (p - |S|) + rank(B) ≤ 2 (p - |S|) - s,

with ``s`` the dimension of flat directions ``ξ`` outside ``S`` for which ``Bᵀ ξ = 0``: symmetries
that act there, whatever ``S`` is. Where the rest is affine as well, ``A = 0`` and ``rank(H_f) = 2
rank(B)``; for one hidden layer of (leaky) ReLU that is ``2 Σ_i rank(Σ_n σ'_i(n) r_n x̃_nᵀ)``.

That a block is zero is not assumed: its product with a random vector must be, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_hessrank.bounds.cuts import null_space
from lightning_hessrank.bounds.inputs import flatten, matrix_rank
from lightning_hessrank.bounds.live import LiveBatch, Mixtures, gradients, output_slopes
from lightning_hessrank.bounds.symmetries import Symmetries
from lightning_hessrank.network.autograd import pull_back_somehow
from lightning_hessrank.network.function import layers_of

#: Products that ``B`` may take.
MAX_PRODUCTS = 256


def affine_bound(
    batches: Sequence[LiveBatch],
    parameters: Mapping[str, Tensor],
    symmetries: Symmetries | None = None,
) -> int:
    """Bound the rank of the functional part.

    Args:
        batches: what was read of the batches, with their graphs; the outputs must be known.
        parameters: trainable parameters by qualified name.
        symmetries: verified flat directions, where they are known.
    """
    blocks = _Blocks(batches, parameters)
    sizes = {name: x.numel() for name, x in parameters.items()}
    p = sum(sizes.values())
    chosen: list[str] = []
    layers = layers_of(parameters).values()
    for names in sorted(layers, key=lambda names: -sum(sizes[x] for x in names)):
        if blocks.vanishes([*chosen, *names]):
            chosen += names
    rest = [name for name in parameters if name not in chosen]
    inside, outside = (sum(sizes[x] for x in names) for names in (chosen, rest))
    if not inside:
        return p
    bound = min(p, 2 * outside - _flat_outside(chosen, sizes, symmetries))
    if min(inside, outside) > MAX_PRODUCTS:
        return bound
    small, large = (chosen, rest) if inside <= outside else (rest, chosen)
    rank = matrix_rank(blocks.between(small, large)) if small and large else 0
    return min(bound, 2 * rank if blocks.vanishes(rest) else outside + rank)


def _flat_outside(
    chosen: Sequence[str], sizes: Mapping[str, int], symmetries: Symmetries | None
) -> int:
    """``s``: combinations of flat directions that vanish on ``S``, as do their products there."""
    if symmetries is None or not symmetries.span.shape[1]:
        return 0
    inside = torch.cat([torch.full((n,), name in chosen) for name, n in sizes.items()])
    seen = symmetries.images[inside]
    scale = float(symmetries.images.norm()) or 1.0
    return null_space(torch.cat([symmetries.span[inside], seen / scale])).shape[1]


class _Blocks:
    """Blocks of the functional parts of all batches."""

    def __init__(self, batches: Sequence[LiveBatch], parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        self._weights = [batch.weight for batch in batches]
        self._slopes: list[dict[str, Tensor]] = []
        for batch in batches:
            held = [r.detach() for r in output_slopes(batch.loss, batch.outputs)]
            slopes = gradients(batch.outputs, list(parameters.values()), held, create_graph=True)
            self._slopes.append(dict(zip(parameters, slopes, strict=True)))

    def vanishes(self, names: Sequence[str]) -> bool:
        """Whether the diagonal block of some parameters is zero."""
        own = [self._parameters[name] for name in names]
        return not any(
            bool(x.any())
            for slopes in self._slopes
            for x in gradients([slopes[n] for n in names], own, Mixtures()(own))
        )

    def between(self, columns: Sequence[str], rows: Sequence[str]) -> Tensor:
        """The block of some columns and rows, ``(columns, rows)``."""
        own = [self._parameters[name] for name in columns]
        sizes = [x.numel() for x in own]
        unit = torch.eye(sum(sizes), dtype=own[0].dtype, device=own[0].device)
        units = [u.reshape(-1, *x.shape) for u, x in zip(unit.split(sizes, 1), own, strict=True)]
        at, total = [self._parameters[n] for n in rows], torch.zeros(1, 1)
        for weight, slopes in zip(self._weights, self._slopes, strict=True):
            found = pull_back_somehow([slopes[n] for n in columns], at, units)
            block = flatten(found)
            total = total.to(block) + weight * block
        return total.to("cpu", torch.float64)
