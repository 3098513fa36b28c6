"""Products from differences of gradients: as good as they say, and labelled."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_hessrank import hessian_rank
from lightning_hessrank.estimators import UnresolvedError
from lightning_hessrank.hessian import LossCurvature
from lightning_hessrank.hessian.differences import DifferenceCurvature
from lightning_hessrank.hessian.verify import WrongProductError
from lightning_hessrank.results import PARTS
from lightning_hessrank.subject.step import model_step
from lightning_hessrank.subject.subject import Subject


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Softplus, nn.ReLU])
@pytest.mark.parametrize("batches", [1, 2])
def test_they_are_exact_products_up_to_their_error(
    activation: Callable[[], nn.Module], batches: int
) -> None:
    net = nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 5), activation())
    net.append(nn.Linear(5, 3))
    data = [(torch.randn(n, 4), torch.randint(0, 3, (n,))) for n in (12, 7)[:batches]]
    subject = Subject(net, data, model_step(F.cross_entropy))
    exact = LossCurvature(subject.loss_function())
    found = DifferenceCurvature(subject.loss_function())
    assert found.loss == pytest.approx(exact.loss, rel=1e-14)
    assert 0 < found.resolution < 1e-6
    largest = torch.linalg.matrix_norm(exact.operator().to_dense(), 2)
    for part in PARTS:
        expected, dense = (c.operator(part).to_dense() for c in (exact, found))
        assert torch.linalg.matrix_norm(dense - expected, 2) <= found.resolution * largest
    block = ["2.weight", "4.bias"]
    expected, dense = (c.operator("total", block).to_dense() for c in (exact, found))
    assert torch.linalg.matrix_norm(dense - expected, 2) <= found.resolution * largest


class Bag(nn.Module):
    def __init__(self, words: nn.Module) -> None:
        super().__init__()
        self.words, self.head = words, nn.Linear(3, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        return self.head(torch.tanh(x if x.ndim == 2 else x.mean(1)))


@pytest.mark.parametrize("part", PARTS)
def test_a_bag_counts_like_the_mean_of_its_words(part: str) -> None:
    bag, mean = Bag(nn.EmbeddingBag(6, 3)), Bag(nn.Embedding(6, 3))
    mean.load_state_dict(bag.state_dict())
    data = torch.randint(0, 6, (20, 4)), torch.randint(0, 3, (20,))
    found, exact = (hessian_rank(n, F.cross_entropy, data, part=part) for n in (bag, mean))
    assert (found.products, exact.products) == ("differences", "autograd")
    assert found.rtol == 1e-6
    assert found.rank == exact.rank_at(1e-6)
    assert found.counts == {rtol: exact.rank_at(rtol) for rtol in found.counts}
    assert len(found.counts) == 6


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(label for label, _ in itertools.groupby(path) if label)


def ctc_by_all_paths(log_probabilities: Tensor, target: tuple[int, ...]) -> Tensor:
    """Negative log likelihood of a sequence of labels, summed over all paths."""
    steps, classes = log_probabilities.shape
    paths = [x for x in itertools.product(range(classes), repeat=steps) if collapsed(x) == target]
    scores = [sum(log_probabilities[t, c] for t, c in enumerate(path)) for path in paths]
    return -torch.stack(scores).logsumexp(0)


def test_ctc_counts_like_the_sum_over_all_paths() -> None:
    net, x = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 12)), torch.randn(5, 4)
    labels = torch.tensor([[1, 2], [2, 1], [1, 1], [2, 2], [1, 2]])

    def fused(f: Tensor, y: Tensor) -> Tensor:
        steps = f.view(-1, 4, 3).log_softmax(2).transpose(0, 1)
        lengths = torch.full((5,), 4), torch.full((5,), 2)
        return F.ctc_loss(steps, y, *lengths, reduction="sum") / 5

    def by_hand(f: Tensor, y: Tensor) -> Tensor:
        steps = f.view(-1, 4, 3).log_softmax(2)
        return (
            sum(ctc_by_all_paths(s, tuple(t.tolist())) for s, t in zip(steps, y, strict=True)) / 5
        )

    found, exact = (hessian_rank(net, loss, (x, labels)) for loss in (fused, by_hand))
    assert found.products == "differences"
    assert found.counts == {rtol: exact.rank_at(rtol) for rtol in found.counts}
    size = float(exact.eigenvalues.abs().max())
    torch.testing.assert_close(
        found.eigenvalues, exact.eigenvalues, rtol=0, atol=found.resolution * size
    )
    parts = {part: hessian_rank(net, fused, (x, labels), part=part) for part in PARTS[1:]}
    expected = {part: hessian_rank(net, by_hand, (x, labels), part=part) for part in PARTS[1:]}
    assert {p: e.rank for p, e in parts.items()} == {
        p: e.rank_at(parts[p].rtol) for p, e in expected.items()
    }


def distances(f: Tensor, y: Tensor) -> Tensor:
    return torch.cdist(f, y).mean()


def test_what_the_error_does_not_allow_is_not_told() -> None:
    net, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.randn(8, 2))
    found = hessian_rank(net, distances, data)
    by_hand = hessian_rank(
        net, lambda f, y: (f[:, None] - y).square().sum(2).sqrt().mean(), data, rtol=1e-6
    )
    assert found.rank == by_hand.rank
    with pytest.raises(ValueError, match="error allows counts at relative tolerances from"):
        found.rank_at(1e-15)
    with pytest.raises(UnresolvedError, match="products are differences of gradients"):
        hessian_rank(net, distances, data, rtol=1e-15)


def test_gradients_that_are_none_are_refused() -> None:
    class Bent(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return grad * (1 + ctx.saved_tensors[0].roll(1, 1) ** 2)

    def loss(f: Tensor, y: Tensor) -> Tensor:
        return torch.cdist(Bent.apply(f), y).square().mean()

    net, data = nn.Linear(3, 2), (torch.randn(8, 3), torch.randn(8, 2))
    with pytest.raises(WrongProductError, match="differences of gradients are not symmetric"):
        hessian_rank(net, loss, data)
