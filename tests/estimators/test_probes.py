"""Probes: the same whatever blocks they are asked for in."""

from __future__ import annotations

import pytest
import torch

from lightning_hessrank.estimators.probes import GaussianProbes


def test_probes_are_the_same_in_any_blocks() -> None:
    probes = GaussianProbes(11, 7, dtype=torch.float64, device=torch.device("cpu"))
    whole = probes.columns(0, 100)
    assert whole.shape == (11, 100)
    parts = [probes.columns(i, min(i + 13, 100)) for i in range(0, 100, 13)]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert torch.equal(probes.columns(40, 41), whole[:, 40:41])
    other = GaussianProbes(11, 8, dtype=torch.float64, device=torch.device("cpu"))
    assert not torch.equal(other.columns(0, 100), whole)
    assert abs(float(whole.mean())) < 0.1
    assert float(whole.std()) == pytest.approx(1, abs=0.1)
