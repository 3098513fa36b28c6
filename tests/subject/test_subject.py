"""The subject: the mean loss over batches, of a copy, as a function of trainable parameters."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject

PAIRS = [(torch.ones(n, 2) * n, torch.zeros(n, 1)) for n in (3, 1)]


def test_batches_are_weighted_by_their_samples() -> None:
    model = nn.Linear(2, 1)
    subject = Subject(model, PAIRS, model_step(F.mse_loss))
    terms = subject.loss_function().terms
    assert [term.weight for term in terms] == [0.75, 0.25]
    assert subject.num_samples == 4
    together = F.mse_loss(model(torch.cat([x for x, _ in PAIRS])), torch.zeros(4, 1))
    mean = sum(term.weight * term.evaluate().loss.item() for term in terms)
    assert mean == pytest.approx(together.item(), rel=1e-6)
    shared = Subject(model, PAIRS, model_step(F.mse_loss), total_samples=8)
    assert [term.weight for term in shared.loss_function().terms] == [0.375, 0.125]


def test_a_step_that_changes_its_batch_gives_the_same_each_time() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(outputs, targets.add_(1.0))

    subject = Subject(nn.Linear(2, 1), PAIRS, model_step(loss))
    first, second = (subject.evaluate(subject.batches[0]).loss for _ in range(2))
    assert torch.equal(first, second)
    assert not bool(PAIRS[0][1].any())


def test_nothing_to_measure_is_said() -> None:
    frozen = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameters that require gradients"):
        Subject(frozen, PAIRS, model_step(F.mse_loss))
