"""Whether the outputs of fewer samples are the beginning of those of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lightning_hessrank.subject.step import StepResult
from lightning_hessrank.text import in_short

#: Relative difference of outputs that rounding leaves; of lower precisions, in their eps.
SAME, SAME_EPS = 1e-9, 100


def difference(
    evaluate: Callable[[Any], StepResult], whole: Any, part: Any, sizes: tuple[int, int]
) -> str | None:
    """Say why a batch is not the beginning of another; ``None``: it is.

    Args:
        evaluate: runs the step on a batch.
        whole: a batch.
        part: what are said to be its first samples.
        sizes: numbers of samples in both.

    Raises:
        Exception: whatever the step raises on the whole batch.
    """
    with torch.enable_grad():
        expected = evaluate(whole)
        try:
            found = evaluate(part)
        except Exception as error:  # whatever user code does on such a batch
            return f"the step fails on a part of it ({in_short(error)})"
    if not expected.outputs or len(expected.outputs) != len(found.outputs):
        return "the network's output is not known, so that there is no telling what a part of it is"
    for one, few in zip(expected.outputs, found.outputs, strict=True):
        if not _begins_with(one.tensor.detach(), few.tensor.detach(), *sizes):
            return "the network has other outputs for a part of it"
    return None


def _begins_with(whole: Tensor, part: Tensor, full: int, samples: int) -> bool:
    if not whole.ndim or whole.shape[1:] != part.shape[1:]:
        return False
    if len(part) * full != len(whole) * samples:
        return False
    error = (whole[: len(part)] - part).abs().max() if part.numel() else whole.new_zeros(())
    tolerance = max(SAME, SAME_EPS * torch.finfo(whole.dtype).eps)
    return bool(error <= tolerance * whole.abs().max())
