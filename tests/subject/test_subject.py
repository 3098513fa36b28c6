"""The subject: the mean loss over batches, of a copy, as a function of trainable parameters."""

from __future__ import annotations

from typing import ClassVar

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


class Counting(nn.Module):
    """Notes how many samples it and its copies have run on."""

    runs: ClassVar[list[int]] = []

    def __init__(self, *, mixes: bool = False) -> None:
        super().__init__()
        self.layer, self.mixes = nn.Linear(2, 1), mixes

    def forward(self, x: Tensor) -> Tensor:
        Counting.runs.append(len(x))
        return self.layer(x - x.mean() if self.mixes else x)


@pytest.fixture
def runs() -> list[int]:
    Counting.runs.clear()
    return Counting.runs


BATCH = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 1)


def test_as_many_samples_as_are_evaluated_in_some_time(runs: list[int]) -> None:
    subject = Subject(Counting(), [BATCH], model_step(F.mse_loss), training=False)
    assert subject.seconds > 0
    subject.seconds = 2.0
    assert subject.quick(None) is subject
    assert subject.quick(2.0) is subject
    few = subject.quick(0.5)
    assert (few.num_samples, few.seconds) == (16, 0.5)
    assert subject.quick(1e-9).num_samples == 8
    assert subject.quick(1e-9, least=3).num_samples == 3
    # One evaluation of all samples tells what the others would, and one of half of them.
    assert runs == [64, 32]


def test_a_batch_that_cannot_be_cut_is_taken_whole(runs: list[int]) -> None:
    subject = Subject(Counting(mixes=True), [BATCH], model_step(F.mse_loss), training=False)
    subject.seconds = 2.0
    assert subject.quick(0.5).num_samples == 64
    assert runs == [64, 32]


def test_what_is_known_of_a_network_is_known_in_another_precision(runs: list[int]) -> None:
    subject = Subject(Counting(), [BATCH], model_step(F.mse_loss), training=False)
    assert subject.first(8).num_samples == 8
    single = subject.in_precision(torch.float32)
    assert single.first(8).num_samples == 8
    assert single.seconds == subject.seconds
    assert runs == [64, 32]


@pytest.mark.parametrize("training", [True, None])
def test_what_was_seen_in_training_mode_does_not_tell_of_evaluation_mode(
    training: bool | None,
) -> None:
    net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).train()
    subject = Subject(net, [BATCH], model_step(F.mse_loss), training=training)
    assert subject.first(8).num_samples == 8  # in training mode, its outputs are others


def test_a_step_that_writes_into_parameters_is_settled_in_each_precision() -> None:
    class Normalised(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.weight.div_(self.weight.norm())
            return super().forward(x)

    subject = Subject(Normalised(2, 1), [BATCH], model_step(F.mse_loss), training=False)
    single = subject.in_precision(torch.float32)
    values = [float(s.evaluate(s.batches[0]).loss.detach()) for s in (subject, single)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    before = [p.clone() for p in single.parameters.values()]
    single.evaluate(single.batches[0])
    assert all(torch.equal(p, q) for p, q in zip(single.parameters.values(), before, strict=True))
