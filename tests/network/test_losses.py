"""The table of losses: one name each, whatever it is given as."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn import functional

from lightning_hessrank.network.losses import loss_kind


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("mse", "mse"),
        (nn.MSELoss(), "mse"),
        (functional.mse_loss, "mse"),
        (nn.CrossEntropyLoss(label_smoothing=0.1), "cross_entropy"),
        (functional.cross_entropy, "cross_entropy"),
        (nn.BCEWithLogitsLoss, "binary_cross_entropy_with_logits"),
        (functional.huber_loss, "huber_loss"),
    ],
)
def test_losses_are_recognised(loss: object, name: str) -> None:
    assert loss_kind(loss).name == name
