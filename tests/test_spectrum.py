"""Smooth companions of the rank, against their definitions on planted spectra."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_hessrank.estimators import estimate_rank
from lightning_hessrank.estimators.lanczos import lanczos_rank
from lightning_hessrank.hessian import DenseOperator
from lightning_hessrank.results import RankEstimate
from lightning_hessrank.spectrum import Spectrum

VALUES = torch.cat([torch.logspace(0, -8, 150), -torch.logspace(-1, -9, 50)]).double()


def estimate(method: str, **options: object) -> RankEstimate:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(len(VALUES), len(VALUES), dtype=torch.float64)).Q
    matrix = (basis * VALUES) @ basis.T
    operator = DenseOperator((matrix + matrix.T) / 2)
    if method == "lanczos":
        return lanczos_rank(operator, **options)
    return estimate_rank(operator, method=method, **options)


def test_from_all_eigenvalues_they_are_what_they_are_defined_as() -> None:
    found, size = estimate("dense"), VALUES.abs()
    q = size / size.sum()
    expected = {
        "entropy_rank": math.exp(-float((q * q.log()).sum())),
        "participation_ratio": float(size.sum() ** 2 / (size**2).sum()),
        "stable_rank": float((size**2).sum() / size.max() ** 2),
    }
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9)
        assert getattr(found, name).std_error == 0.0
    for alpha in (1e-1, 1e-4):
        expected_dimension = float((size / (size + alpha)).sum())
        assert found.effective_dimension(alpha) == pytest.approx(expected_dimension, rel=1e-9)
    assert found.count_beyond(0.01) == int((size > 0.01).sum())


@pytest.mark.parametrize("number", [1, 7, 40])
def test_of_equal_eigenvalues_all_are_their_number(number: int) -> None:
    spectrum = Spectrum.of(torch.full((number,), -3.0, dtype=torch.float64))
    for value in (
        spectrum.entropy_rank(),
        spectrum.participation_ratio(),
        spectrum.stable_rank(),
        2 * spectrum.effective_dimension(3.0),
    ):
        assert value == pytest.approx(number)


def test_of_the_zero_matrix_all_are_zero() -> None:
    spectrum = Spectrum.of(torch.zeros(5, dtype=torch.float64))
    found = (spectrum.entropy_rank(), spectrum.participation_ratio(), spectrum.stable_rank())
    assert (*found, spectrum.effective_dimension(1e-3)) == (0, 0, 0, 0)


def test_quadrature_is_within_its_standard_error() -> None:
    exact, found = estimate("dense"), estimate("lanczos", rtol=1e-1, max_products=120)
    for name in ("entropy_rank", "participation_ratio", "stable_rank"):
        value = getattr(found, name)
        assert value.std_error < 0.1 * value
        assert abs(value - getattr(exact, name)) <= 4 * value.std_error + 1e-6 * value
    dimension = found.effective_dimension(1e-1)
    error = abs(dimension - exact.effective_dimension(1e-1))
    assert error <= 4 * dimension.std_error + 1e-6 * dimension


def test_what_quadrature_cannot_tell_is_refused() -> None:
    found = estimate("lanczos", rtol=1e-1, max_products=48)
    with pytest.raises(ValueError, match=r"^the quadrature cannot tell the effective dimension"):
        found.effective_dimension(1e-9)
    assert "effective_dimension" not in found.measures(1e-9)
    assert "effective_dimension" in found.measures(1.0)
    with pytest.raises(ValueError, match=r"^the quadrature cannot tell how many eigenvalues"):
        found.count_beyond(1e-9)
    assert found.count_beyond(2.0) == 0


def test_a_sketch_knows_no_spectrum_and_arguments_are_checked() -> None:
    found = estimate("sketch", rtol=1e-3)
    with pytest.raises(ValueError, match="the sketch method knows") as caught:
        found.entropy_rank  # noqa: B018
    assert str(caught.value) == (
        "the sketch method knows no spectrum; use method='dense' or 'lanczos'"
    )
    with pytest.raises(ValueError, match=r"^alpha must be positive, got 0"):
        estimate("dense").effective_dimension(0)
    with pytest.raises(ValueError, match=r"^threshold must not be negative, got -1"):
        found.count_beyond(-1)
