"""A factor ``G`` of the outer-product Hessian, ``H_o = GᵀG``, with one row per sample and output.

Its Gram matrix ``GGᵀ`` has the nonzero eigenvalues of ``H_o`` at the size ``N K`` instead of ``p``,
where that is smaller. With ``∇²ℓ_n = L_n L_nᵀ``, row ``(n, j)`` of ``G`` is the gradient of
``⟨L_n[:, j], f_n⟩``: the gradient of one sample. Backpropagated one by one these would cost ``N K``
passes over the whole batch. But where samples do not interact, one pass with the cotangents of all
samples gives the signal ``δ_n`` at the output of every layer, and a layer that multiplies its
weights with patches ``a_n`` of its input has the gradients ``δ_n ⊗ a_n``: ``K`` passes in all.

That samples do not interact, and that the layers seen are all there is, is not assumed: the factor
is compared with true products along random directions, and dropped unless they agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_hessrank.hessian.graph import Graph
from lightning_hessrank.hessian.root import outputs_per_sample, root_of_loss
from lightning_hessrank.network.recorder import RecordedUse


def outer_factor(
    graph: Graph, uses: Sequence[RecordedUse], indices: Sequence[int]
) -> Tensor | None:
    """Return ``G`` for some parameters, shape ``(N * rank(∇²ℓ_n), p)``; ``None`` if there is none.

    Whether ``GᵀG`` is the outer part has to be checked.

    Args:
        graph: of one evaluation.
        uses: what a :class:`~lightning_hessrank.network.recorder.LayerRecorder` saw during it.
        indices: numbers of the parameters.
    """
    parameters = [graph.parameters[i] for i in indices]
    root = None if outputs_per_sample(graph) is None else root_of_loss(graph)
    if root is None or bool((root.signs < 0).any()):
        return None
    wanted, samples = {id(x) for x in parameters}, root.signs.shape[1]
    used = [
        x for x in uses if x.owns(wanted) and x.layer.has_samples and x.output.shape[0] == samples
    ]
    owned = {id(x.layer.weight) for x in used} | {id(x.layer.bias) for x in used}
    if not wanted <= owned:
        return None
    if not len(root.signs):  # the loss is flat in the output, as an absolute error is
        return root.vectors.new_zeros(0, sum(x.numel() for x in parameters))
    signals = graph.pull_back([root.vectors], [x.output for x in used])
    place = {id(x): i for i, x in enumerate(parameters)}
    blocks = [x.new_zeros(root.signs.numel(), x.numel()) for x in parameters]
    for use, cotangents in zip(used, signals, strict=True):
        layer = use.layer
        delta = layer.signals(cotangents)
        if id(layer.weight) in place:
            gradient = torch.einsum("jngms,ngcs->jngmc", delta, layer.patches())
            rows = gradient.flatten(2).flatten(0, 1)
            blocks[place[id(layer.weight)]] += rows if layer.is_row_major else rows[:, layer.order]
        if id(layer.bias) in place:
            blocks[place[id(layer.bias)]] += delta.sum(4).flatten(2).flatten(0, 1)
    return torch.cat(blocks, dim=1)


def outer_pairs(
    graph: Graph, uses: Sequence[RecordedUse], index: int
) -> tuple[Tensor, Tensor] | None:
    """Return what the rows of ``G`` for one weight are products of, however large the weight is.

    Where a fully connected layer multiplies it with one vector ``a_n`` a sample, row ``(j, n)`` is
    ``δ_jn ⊗ a_n``, and ``GGᵀ = (δδᵀ) ∘ (aaᵀ)`` needs no rows.

    Args:
        graph: of one evaluation.
        uses: what a :class:`~lightning_hessrank.network.recorder.LayerRecorder` saw during it.
        index: number of the weight.

    Returns:
        ``δ``, shape ``(N * rank(∇²ℓ_n), m)``, and ``a``, as many rows; ``None`` if the weight is
        used in another way.
    """
    weight = graph.parameters[index]
    root = None if outputs_per_sample(graph) is None else root_of_loss(graph)
    used = [x for x in uses if x.layer.weight is weight]
    if root is None or bool((root.signs < 0).any()) or len(used) != 1:
        return None
    layer = used[0].layer
    if not layer.has_samples or used[0].output.shape[0] != root.signs.shape[1]:
        return None
    patches = layer.patches()  # (n, g, c, s)
    if patches.shape[1] != 1 or patches.shape[3] != 1:
        return None
    delta = layer.signals(graph.pull_back([root.vectors], [used[0].output])[0])
    inputs = patches[:, 0, :, 0].expand(len(delta), -1, -1)
    return delta[:, :, 0, :, 0].flatten(0, 1), inputs.flatten(0, 1)
