"""Whether fewer samples of a batch are still the batch of a step, with less of the same in it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_hessrank.network.batches import batch_size, cut_batch
from lightning_hessrank.subject.step import Step
from lightning_hessrank.subject.subject import Subject

#: Relative difference of outputs that rounding leaves.
SAME = 1e-9


class Cut(NamedTuple):
    """A batch that was to be cut."""

    batch: Any
    size: int
    """Samples in it."""
    reason: str | None = None
    """Why it is whole all the same."""


def cut_samples(
    module: nn.Module,
    step: Step,
    batch: Any,
    samples: int,
    *,
    size: int | None = None,
    trainer: Any = None,
) -> Cut:
    """Keep the first samples of a batch, if that leaves their outputs as they are.

    Nodes of a graph, the time of sequences that come first, owners and edges have no samples in the
    first dimension: then the step fails on what was cut, or the network has other outputs for it,
    or no fewer. Such a batch is taken whole. The network is asked in evaluation mode, where batch
    norm does not mix samples.

    Args:
        module: the live one; copied, and left as it is.
        step: of it.
        batch: whose tensors have samples in their first dimension, as far as can be seen.
        samples: to keep.
        size: samples in the batch; ``None``: as many as most tensors have entries.
        trainer: that the step may read.
    """
    full = batch_size(batch) if size is None else size
    if samples >= full:
        return Cut(batch, full)
    fewer = cut_batch(batch, samples, full)
    subject = Subject(
        module, [batch, fewer], step, training=False, sizes=[full, samples], trainer=trainer
    )
    try:
        reason = _difference(subject)
    finally:
        subject.release()
    return Cut(fewer, samples) if reason is None else Cut(batch, full, reason)


def _difference(subject: Subject) -> str | None:
    """Say why the second batch of a subject is not the beginning of the first."""
    whole, fewer = subject.batches
    with torch.enable_grad():
        expected = subject.evaluate(whole)  # what this raises is no fault of the cut
        try:
            found = subject.evaluate(fewer)
        except Exception as error:  # whatever user code does on such a batch
            return f"the step fails on a part of it ({type(error).__name__}: {error})"
    if not expected.outputs or len(expected.outputs) != len(found.outputs):
        return "the network's output is not known, so that there is no telling what a part of it is"
    for one, part in zip(expected.outputs, found.outputs, strict=True):
        if not _begins_with(one.tensor.detach(), part.tensor.detach(), *subject.sizes):
            return "the network has other outputs for a part of it"
    return None


def _begins_with(whole: Tensor, part: Tensor, full: int, samples: int) -> bool:
    if not whole.ndim or whole.shape[1:] != part.shape[1:]:
        return False
    if len(part) * full != len(whole) * samples:
        return False
    difference = (whole[: len(part)] - part).abs().max() if part.numel() else whole.new_zeros(())
    return bool(difference <= SAME * whole.abs().max())
