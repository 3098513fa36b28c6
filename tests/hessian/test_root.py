"""The root of the loss's curvature, and what keeps shortcuts honest: the check of products."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_hessrank import hessian_rank
from lightning_hessrank.hessian.operator import agrees, random_vectors
from lightning_hessrank.tolerance import COUNT_TOLERANCES, machine_rtol, numerical_rank


@pytest.mark.parametrize("size", [300, 2000])
def test_an_error_that_a_rank_can_see_is_not_let_pass(size: int) -> None:
    """On a flat spectrum the cut is far below the same share of the Frobenius norm."""
    matrix = torch.ones(size, dtype=torch.float64)
    matrix[-1] = 0
    vectors = random_vectors(size, matrix)
    for times, passes in ((0.01, True), (4.0, False)):
        wrong = matrix.clone()
        wrong[-1] = times * machine_rtol(size)
        assert agrees(wrong[:, None] * vectors, matrix[:, None] * vectors) is passes


def test_the_outer_part_of_an_overfitted_classifier_has_a_small_matrix() -> None:
    """Rounding errors of its second derivatives by the outputs do not pass for a concave loss."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 20), nn.Tanh(), nn.Linear(20, 4)).double()
    x, y = torch.randn(12, 6, dtype=torch.float64), torch.arange(12) % 4
    optimiser = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(600):
        optimiser.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimiser.step()
    with torch.no_grad():
        net[2].weight.mul_(3)
    jacobian = per_sample_jacobian(net, x)
    log = net(x).log_softmax(1).detach()
    assert float(1 - log.max(1).values.exp().min()) < 1e-7
    pairs = (log[:, :, None] + log[:, None]).exp() / 12 * (1 - torch.eye(4, dtype=torch.float64))
    curvature = torch.diag_embed(pairs.sum(2)) - pairs
    exact = torch.einsum("nkp,nkl,nlq->pq", jacobian, curvature, jacobian)
    expected = torch.linalg.eigvalsh(exact).flip(0)
    found = hessian_rank(net, "cross_entropy", (x, y), part="outer", method="dense")
    assert found.num_parameters > 36
    eigenvalues = found.eigenvalues.flip(0)
    torch.testing.assert_close(eigenvalues[:36], expected[:36], rtol=1e-6, atol=1e-13)
    for tolerance in COUNT_TOLERANCES:
        assert found.counts[tolerance] == numerical_rank(expected, tolerance).rank


def per_sample_jacobian(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``∂f_nk/∂θ``, shape ``(samples, outputs, p)``."""
    outputs = net(x)
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(f, list(net.parameters()), retain_graph=True)]
        )
        for f in outputs.flatten()
    ]
    return torch.stack(rows).unflatten(0, outputs.shape)
