"""Whether fewer samples of a batch are still the batch of a step, with less of the same in it."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from lightning_hessrank.network.batches import batch_size, cut_batch
from lightning_hessrank.subject.step import Step
from lightning_hessrank.subject.subject import Subject


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
    subject = Subject(module, [batch], step, training=False, sizes=[full], trainer=trainer)
    try:
        reason = subject.why_whole(subject.batches[0], full, samples)
    finally:
        subject.release()
    if reason is not None:
        return Cut(batch, full, reason)
    return Cut(cut_batch(batch, samples, full), samples)
