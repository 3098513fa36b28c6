"""Vectors that are sharded like parameters: one on all processes is one vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_hessrank.processes import Processes
from lightning_hessrank.sharded.shards import ShardedRows, ShardProbes, local_part, shard_of


class Alone(Processes):
    """One of several processes, whose values all the others have, too."""

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        return values * self.count

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.count


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_vector_that_all_processes_store_is_one_vector(count: int) -> None:
    net = nn.Linear(3, 2)
    rows = ShardedRows(net, Alone(0, count))
    assert rows.dim == rows.count == rows.most == 8
    weights = [shard.local for shard in rows.shards]
    vector = rows.join(weights)
    expected = torch.cat([x.flatten() for x in weights]).double().norm()
    assert float(rows.norms(vector[:, None])) == pytest.approx(float(expected), rel=1e-14)
    for piece, weight in zip(rows.split(vector), weights, strict=True):
        torch.testing.assert_close(piece, weight.double(), rtol=1e-14, atol=0)


def test_what_every_process_has_is_its_own_local_part() -> None:
    weight = nn.Linear(2, 2).weight
    assert local_part(weight) is weight
    shard = shard_of("weight", weight, 4)
    assert (shard.copies, shard.number) == (4, 0)
    shard.local.zero_()
    assert not bool(weight.any())


def test_probes_are_the_same_whenever_they_are_drawn() -> None:
    rows = ShardedRows(nn.Linear(3, 2), Alone())
    probes = ShardProbes(rows, 7)
    block = probes.columns(0, 3)
    assert block.shape == (8, 3)
    assert torch.equal(block[:, 1:], probes.columns(1, 3))
    assert not torch.equal(block, ShardProbes(rows, 8).columns(0, 3))


def test_probes_are_standard_normal() -> None:
    drawn = ShardProbes(ShardedRows(nn.Linear(40, 50), Alone()), 0).columns(0, 20)
    assert abs(float(drawn.mean())) < 4 / drawn.numel() ** 0.5
    assert float(drawn.std()) == pytest.approx(1, abs=4 / (2 * drawn.numel()) ** 0.5)


def test_a_frozen_network_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no parameters that require gradients"):
        ShardedRows(nn.Linear(3, 2).requires_grad_(False), Processes())


def test_complex_parameters_are_refused() -> None:
    with pytest.raises(TypeError, match="parameter weight is complex"):
        ShardedRows(nn.Linear(3, 2, dtype=torch.complex64), Processes())
