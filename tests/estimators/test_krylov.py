"""The block Krylov subspace: its defining identity, and what its Ritz pairs promise."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.estimators.basis import Basis
from lightning_hessrank.estimators.krylov import BlockKrylov
from lightning_hessrank.estimators.probes import GaussianProbes
from tests.estimators.planted import planted, two_levels


def grown(operator, block: int, steps: int, locked=None) -> BlockKrylov:
    probes = GaussianProbes(operator.dim, 1, dtype=operator.dtype, device=operator.device)
    space = BlockKrylov(operator, probes.columns(0, block), operator.dim, locked)
    for _ in range(steps):
        if not space.exhausted:
            space.extend()
    return space


SPECTRUM = torch.cat([two_levels(3, 60), torch.zeros(15, dtype=torch.float64)])


@pytest.mark.parametrize("block", [1, 4, 9])
@pytest.mark.parametrize("steps", [1, 3, 40])
def test_basis_is_orthonormal_and_tridiagonalises(block: int, steps: int) -> None:
    operator = planted(SPECTRUM)
    space = grown(operator, block, steps)
    v = space.vectors(torch.eye(space.size, dtype=torch.float64))
    unit = torch.eye(space.size, dtype=torch.float64)
    torch.testing.assert_close(v.T @ v, unit, rtol=0, atol=1e-13)
    pairs = space.ritz()
    y = space.vectors(pairs.coordinates)
    residual = operator.matrix @ y - y * pairs.values
    true = torch.linalg.vector_norm(residual, dim=0)
    assert float((pairs.residuals - true).abs().max()) < 1e-12
    projected = torch.linalg.eigvalsh(v.T @ operator.matrix @ v)
    torch.testing.assert_close(pairs.values, projected, rtol=0, atol=1e-13)


def test_an_eigenvalue_lies_within_each_residual_and_none_is_a_ghost() -> None:
    operator = planted(SPECTRUM)
    exact = torch.linalg.eigvalsh(operator.matrix)
    for steps in (5, 10, 20):
        pairs = grown(operator, 4, steps).ritz()
        distance = (pairs.values[:, None] - exact).abs().min(dim=1).values
        assert bool((distance <= pairs.residuals + 1e-14).all())
        converged = pairs.values[(pairs.residuals < 1e-10) & (pairs.values.abs() > 0.05)]
        rounded = converged.mul(1e9).round()
        assert len(rounded.unique()) == len(rounded)  # the planted ones are simple


def test_weights_are_a_quadrature() -> None:
    """``xᵀ Aʲ x`` is exact for small powers, and each start vector's weights add up to its norm."""
    operator = planted(SPECTRUM)
    probes = GaussianProbes(operator.dim, 1, dtype=operator.dtype, device=operator.device)
    x = probes.columns(0, 4)
    pairs = grown(operator, 4, 5).ritz()
    for power in range(10):
        expected = (x * (torch.linalg.matrix_power(operator.matrix, power) @ x)).sum(0)
        found = (pairs.weights * pairs.values**power).sum(1)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_invariant_space_is_recognised_at_any_scale(scale: float) -> None:
    operator = planted(scale * torch.tensor([3.0, 2.0, -1.0]).double(), 50)
    space = grown(operator, 1, 40)
    assert space.invariant
    assert space.size == 4  # three eigenvectors, and the start's component in the null space
    assert space.num_products == 4


@pytest.mark.parametrize("chunk", [1, 7 * 8 * 75, 2**26])
def test_basis_grows_in_chunks_of_contiguous_columns(monkeypatch, chunk: int) -> None:
    monkeypatch.setattr("lightning_hessrank.estimators.basis.CHUNK_BYTES", chunk)
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(75, 40, dtype=torch.float64, generator=generator)
    basis = Basis(75, columns.device)
    assert basis.coordinates(columns).shape == (0, 40)
    for first, last in ((0, 4), (4, 8), (8, 23), (23, 40)):
        basis.append(columns[:, first:last])
        v = columns[:, :last]
        torch.testing.assert_close(basis.coordinates(columns), v.T @ columns, rtol=0, atol=1e-12)
        x = columns[:last, :3]
        torch.testing.assert_close(basis.vectors(x), v @ x, rtol=0, atol=1e-12)
        rest = columns - v @ (v.T @ columns)
        torch.testing.assert_close(basis.without(columns), rest, rtol=0, atol=1e-11)


def test_a_float32_operator_has_a_float64_basis_and_drops_no_direction() -> None:
    """Directions below 1e-3 of the largest eigenvalue are no rounding errors."""
    values = torch.cat([torch.ones(1), torch.linspace(1e-4, 2e-4, 120)]).double()
    operator = planted(values, 400)
    operator.matrix, operator.dtype = operator.matrix.float(), torch.float32
    space = grown(operator, 4, 30)
    v = space.vectors(torch.eye(space.size, dtype=torch.float64))
    assert v.dtype == torch.float64
    assert not space.invariant
    assert space.size == 120
    unit = torch.eye(space.size, dtype=torch.float64)
    torch.testing.assert_close(v.T @ v, unit, rtol=0, atol=1e-13)
    pairs = space.ritz()
    y = v @ pairs.coordinates
    true = torch.linalg.vector_norm(operator.matrix.double() @ y - y * pairs.values, dim=0)
    assert bool((true <= pairs.residuals + 2e-7).all())


def test_locked_directions_are_avoided() -> None:
    operator = planted(torch.tensor([5.0, 4.0, 3.0, 2.0, 1.0]), 30)
    locked = torch.linalg.eigh(operator.matrix).eigenvectors[:, -2:]
    space = grown(operator, 3, 10, locked)
    values = space.ritz().values
    torch.testing.assert_close(
        values[-3:], torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64), rtol=0, atol=1e-12
    )
    v = space.vectors(torch.eye(space.size, dtype=torch.float64))
    assert float((locked.T @ v).abs().max()) < 1e-14
