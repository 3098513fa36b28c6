"""lightly: SimSiam, BYOL and Barlow Twins, as its documentation writes them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity
from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.thirdparty.common import Case, fitted, run_all


class TwoViews(pl.LightningModule):
    """What the three have in common: a backbone, a projection, and two views of each image."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 3, 3, 2), nn.Tanh(), nn.Flatten())
        self.project = BYOLProjectionHead(27, 8, 4)
        self.predict = BYOLPredictionHead(4, 6, 4)
        self.cosine = NegativeCosineSimilarity()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], 0.05)


class SimSiam(TwoViews):
    """The other view's projection is a constant."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        z = [self.project(self.backbone(x)) for x in batch]
        p = [self.predict(x) for x in z]
        loss = 0.5 * (self.cosine(p[0], z[1].detach()) + self.cosine(p[1], z[0].detach()))
        self.log("loss", loss)
        return loss


class BYOL(TwoViews):
    """The other view's projection is by a slow average of the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = copy.deepcopy(nn.Sequential(self.backbone, self.project))
        deactivate_requires_grad(self.slow)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        update_momentum(self.backbone, self.slow[0], 0.9)
        update_momentum(self.project, self.slow[1], 0.9)
        p = [self.predict(self.project(self.backbone(x))) for x in batch]
        z = [self.slow(x).detach() for x in batch]
        loss = 0.5 * (self.cosine(p[0], z[1]) + self.cosine(p[1], z[0]))
        self.log("loss", loss)
        return loss


class BarlowTwins(TwoViews):
    """The correlation of the projections is to be the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = nn.Identity()
        self.loss = BarlowTwinsLoss()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(*(self.project(self.backbone(x)) for x in batch))


def views(kind: Callable[[], TwoViews]) -> tuple[Any, Any]:
    """Two noisy copies of each of 16 images."""
    generator = torch.Generator().manual_seed(1)
    x, *noise = torch.randn(3, 16, 1, 8, 8, generator=generator)
    return kind(), DataLoader(TensorDataset(*(x + 0.3 * y for y in noise)), 16)


CASES = [
    Case("lightly", kind.__name__, fitted(lambda kind=kind: views(kind)))  # type: ignore[misc]
    for kind in (SimSiam, BYOL, BarlowTwins)
]

if __name__ == "__main__":
    run_all(CASES)
