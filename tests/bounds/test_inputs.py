"""Random inputs, and ranks of matrices that have no clear one."""

from __future__ import annotations

import torch

from lightning_hessrank.bounds.inputs import matrix_rank


def test_a_spectrum_without_a_gap_counts_in_full() -> None:
    left, right = (torch.linalg.qr(torch.randn(20, 20)).Q for _ in range(2))
    decaying = left * torch.logspace(0, -19, 20) @ right
    assert matrix_rank(decaying) == 20
    clear = left * torch.tensor([1.0] * 7 + [0.0] * 13) @ right
    assert matrix_rank(clear) == 7
