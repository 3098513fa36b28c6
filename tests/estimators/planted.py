"""Symmetric matrices whose spectrum is known."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_hessrank.hessian import DenseOperator


def planted(values: Tensor, dim: int | None = None, seed: int = 0) -> DenseOperator:
    """A matrix with these eigenvalues, and zero for the rest, in a random basis."""
    values = torch.as_tensor(values, dtype=torch.float64)
    dim = len(values) if dim is None else dim
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(random).Q[:, : len(values)]
    matrix = (basis * values) @ basis.T
    return DenseOperator((matrix + matrix.T) / 2)


def two_levels(decades: float, low: int) -> Tensor:
    """25 eigenvalues from 1 to 0.1, then ``low`` ones smaller by some decades, of both signs."""
    top = torch.logspace(0, -0.98, 25, dtype=torch.float64)
    bottom = torch.logspace(-1 - decades, -2 - decades, low, dtype=torch.float64)
    signs = torch.ones(25 + low, dtype=torch.float64)
    signs[::3] = -1
    return torch.cat([top, bottom]) * signs


#: name -> (operator, relative tolerance, count beyond it)
SPECTRA = {
    "gap of 12 decades": (lambda: planted(two_levels(12, 175)), 1e-6, 25),
    "gap of 6 decades": (lambda: planted(two_levels(6, 175)), 1e-4, 25),
    "gap of 2 decades": (lambda: planted(two_levels(2, 175)), 1e-2, 25),
    "no gap": (lambda: planted(torch.logspace(0, -8.01, 201)), 1e-3, 75),
    "indefinite": (
        lambda: planted(torch.cat([torch.logspace(0, -2, 20), -torch.logspace(0, -2, 31)]), 200),
        1e-3,
        51,
    ),
    "repeated": (lambda: planted(torch.tensor([2.0] * 20 + [-1.0] * 30), 200), 1e-3, 50),
    "one eigenvalue": (lambda: planted(torch.full((200,), 3.0)), 1e-3, 200),
    "zero matrix": (lambda: planted(torch.zeros(60)), 1e-3, 0),
    "rank one": (lambda: planted(torch.tensor([-5.0]), 100), 1e-3, 1),
    "full rank": (lambda: planted(torch.linspace(1, 2, 60)), 1e-3, 60),
    "nearly full rank": (lambda: planted(torch.linspace(1, 2, 97), 100), 1e-3, 97),
    "size one": (lambda: planted(torch.tensor([3.0])), 1e-3, 1),
    "size one, zero": (lambda: planted(torch.tensor([0.0])), 1e-3, 0),
    "tiny": (lambda: planted(1e-100 * torch.linspace(1, 2, 9).double(), 50), 1e-3, 9),
    "huge": (lambda: planted(1e100 * torch.linspace(1, 2, 9).double(), 50), 1e-3, 9),
}
