"""With which weights the losses of several batches add up to the loss of all their samples.

A plain mean over samples asks for their numbers; a mean over labels that are not ignored, or over
weights of classes, for something that only the loss knows; a sum for ones. The loss is asked: that
of two batches joined is compared with those of the two. Where gradients are combined as
``∇L = a ∇L₁ + b ∇L₂``, so are Hessians, for ``a`` and ``b`` do not depend on the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_hessrank.network.batches import join_batches
from lightning_hessrank.subject.step import StepResult

#: Relative error of a combination of gradients up to which it is one; of lower precisions, in eps.
TOLERANCE, TOLERANCE_EPS = 1e-10, 100
#: So many batches are all compared with the first; of more, the second stands for the others where
#: it has the weight of its samples.
COMPARED = 64


class BatchWeights(NamedTuple):
    """Weights of the losses of batches."""

    weights: list[float]
    doubt: str | None = None
    """Why their sum is not the loss of all samples."""


def batch_weights(
    evaluate: Callable[[Any], StepResult],
    parameters: Mapping[str, Tensor],
    batches: Sequence[Any],
    sizes: Sequence[int],
) -> BatchWeights:
    """Find the weights of batches, by their numbers of samples where these are right.

    Batches that cannot be joined (graphs, images of other sizes) are weighted by samples.

    Args:
        evaluate: gives the loss of a batch, with its graph.
        parameters: by which gradients are taken.
        batches: one or more.
        sizes: their numbers of samples.
    """
    by_samples = [size / sum(sizes) for size in sizes]
    if len(batches) == 1:
        return BatchWeights(by_samples)

    def values(batch: Any) -> Tensor:
        loss = evaluate(batch).loss
        grads = torch.autograd.grad(
            loss, list(parameters.values()), allow_unused=True, materialize_grads=True
        )
        return torch.cat([loss.detach().reshape(1), *(g.flatten() for g in grads)])

    first = values(batches[0])
    pairs: list[tuple[float, float]] = []
    for i in range(1, len(batches)):
        try:
            joined = join_batches(batches[0], batches[i], (sizes[0], sizes[i]))
        except ValueError:
            return BatchWeights(by_samples)
        both = sizes[0] + sizes[i]
        guess = sizes[0] / both, sizes[i] / both
        three = values(joined), first, values(batches[i])
        if not all(bool(torch.isfinite(x).all()) for x in three):
            return BatchWeights(by_samples)  # said where it is measured
        found = _combination(*three, guess)
        if found is None:
            return BatchWeights(by_samples, _NO_MEAN)
        if found == guess and not pairs and len(batches) > COMPARED:
            return BatchWeights(by_samples)
        pairs.append(found)
    if all(pair == (1.0, 1.0) for pair in pairs):
        return BatchWeights([1.0] * len(batches))
    shares = [1.0, *(b / a for a, b in pairs)]
    return BatchWeights([x / sum(shares) for x in shares])


_NO_MEAN = (
    "the loss of several batches together is no weighted mean of their losses (samples see each "
    "other, as in contrastive losses or batch norm in training mode); the Hessian is that of the "
    "mean over the batches, weighted by their numbers of samples. Pass one batch to measure that "
    "of all samples together"
)


def _combination(
    joined: Tensor, one: Tensor, two: Tensor, guess: tuple[float, float]
) -> tuple[float, float] | None:
    """Return ``(a, b)`` with ``joined = a one + b two``: the guess, ones, or what fits."""
    basis = torch.stack([one, two], dim=1)
    for a, b in (guess, (1.0, 1.0)):
        if _fits(joined, basis, torch.tensor([a, b]).to(basis)):
            return a, b
    fitted = torch.linalg.lstsq(basis, joined.unsqueeze(1)).solution.squeeze(1)
    a, b = fitted.tolist()
    # A mean with weights: shares of one whole.
    return (a, b) if _fits(joined, basis, fitted) and a > 0 and abs(a + b - 1) < 1e-6 else None


def _fits(joined: Tensor, basis: Tensor, shares: Tensor) -> bool:
    error = float((joined - basis @ shares).norm())
    tolerance = max(TOLERANCE, TOLERANCE_EPS * torch.finfo(joined.dtype).eps)
    return error <= tolerance * float(joined.norm().maximum(basis.norm()))
