"""The exact generic rank: for networks that it can be had for."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_hessrank.api import rank_bound
from lightning_hessrank.results import BoundNotAvailableError


def test_the_generic_rank_of_a_large_network_is_refused() -> None:
    model = nn.Sequential(nn.Linear(800, 700, bias=False), nn.Linear(700, 10, bias=False))
    with pytest.raises(BoundNotAvailableError) as caught:
        rank_bound(model, torch.zeros(1, 800), kind="generic")
    assert str(caught.value) == (
        "the exact generic rank of this network (567,000 parameters, rank up to 22,000) would "
        "take too long; pass kind='patch' or kind='auto'"
    )
