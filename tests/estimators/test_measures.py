"""Extremes, trace and norm of a spectrum, of the empty one too."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.estimators.measures import measures_of_spectrum


def test_of_a_matrix() -> None:
    matrix = torch.randn(6, 6, dtype=torch.float64)
    matrix = matrix + matrix.T
    found = measures_of_spectrum(torch.linalg.eigvalsh(matrix))
    assert found["trace"] == pytest.approx(float(matrix.trace()), rel=1e-12)
    assert found["frobenius_norm"] == pytest.approx(float(matrix.norm()), rel=1e-12)
    assert max(found["largest"], -found["smallest"]) == pytest.approx(
        float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-12
    )
    assert found["standard_errors"] == {}


def test_of_nothing() -> None:
    found = measures_of_spectrum(torch.zeros(0))
    assert found.pop("quadrature") is None
    assert {v for k, v in found.items() if k != "standard_errors"} == {0.0}
