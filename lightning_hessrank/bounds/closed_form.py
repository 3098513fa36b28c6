"""Rank of the Hessian of a deep linear fully connected network, in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple


class ClosedForm(NamedTuple):
    """Ranks of the Hessian and its parts, and of each layer's column block of the functional."""

    total: int
    outer: int
    functional: int
    columns: tuple[int, ...]


def chain_rank(widths: Sequence[int], input_rank: int, outputs: int) -> ClosedForm:
    """Rank at generic weights, which no weights exceed, of a chain without biases.

    Singh, Bachmann, Hofmann (arXiv 2106.16225): Theorem 3 (outer-product), Theorem 5 (functional)
    and the total, with ``q = min(r, K', M_1, …, M_{L-1})`` and ``s = min(r, K')``. The functional
    rank is the sum of the layers' column blocks: ``q M + q s - q²`` with ``M`` the hidden width
    next to it for the first and last layer, ``q (M_{l-1} + M_l) - q²`` for an inner one.

    Args:
        widths: hidden widths ``M_1, …, M_{L-1}``; empty for a single layer.
        input_rank: ``r``, rank of the uncentred input covariance.
        outputs: ``K'``, outputs that the loss can see: one less than there are for softmax.
    """
    q = min(input_rank, outputs, *widths) if widths else min(input_rank, outputs)
    s = min(input_rank, outputs)
    outer = q * (input_rank + outputs - q)
    if not widths:
        return ClosedForm(input_rank * outputs, input_rank * outputs, 0, (0,))
    ends = (q * (widths[0] + s - q), q * (widths[-1] + s - q))
    inner = tuple(q * (a + b - q) for a, b in pairwise(widths))
    functional = 2 * q * sum(widths) + 2 * q * s - (len(widths) + 1) * q * q
    total = outer + functional + q * (q - 2 * s)
    return ClosedForm(total, outer, functional, (ends[0], *inner, ends[1]))


def biased_chain_rank(widths: Sequence[int], affine_rank: int, outputs: int) -> ClosedForm | None:
    """Bound for a chain with a bias in every layer, or ``None`` where it does not apply.

    Derived for this project; never below the exact rank on thousands of random nets. With
    ``s = min(r + 1, K')`` it holds where no hidden width is below ``s``: a bottleneck lets biases
    behind it see what the weights before it cannot change (6-10-2-9-3 has total 109).

    ``r + 1`` is the rank of the inputs with a column of ones. Where that column lies in their span
    already, the first bias repeats a direction of the first weight: the network is one on
    inputs of rank ``r - 1``, written with more parameters, and its Hessian has that rank.

    Args:
        widths: hidden widths.
        affine_rank: ``r + 1``, rank of the inputs with a column of ones appended.
        outputs: ``K'``.
    """
    if not widths:
        return ClosedForm(affine_rank * outputs, affine_rank * outputs, 0, (0,))
    r, s = affine_rank - 1, min(affine_rank, outputs)
    if min(widths) < s:
        return None
    q = min(r, outputs, *widths)
    outer = q * (r + outputs - q) + outputs
    ends = (s * widths[0], s * widths[-1])
    inner = tuple(s * (a + b) - s * (s - 1) for a, b in pairwise(widths))
    columns = (ends[0], *inner, ends[1])
    functional = sum(columns)
    return ClosedForm(outer + functional - s * (s - 1), outer, functional, columns)
