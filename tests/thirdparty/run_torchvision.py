"""torchvision: a vision transformer, a residual block, and a detector."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import VisionTransformer
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.resnet import BasicBlock

from tests.thirdparty.common import Case, Wrapped, fitted, run_all, wrapped
from tests.thirdparty.images import classified


def vit() -> nn.Module:
    """One block of width 8 on four patches."""
    return VisionTransformer(8, 4, 1, 2, 8, 16, num_classes=3)


def residual() -> nn.Module:
    """A convolution and one block of a residual network, with batch norm."""
    stem = [nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    return nn.Sequential(*stem, BasicBlock(4, 4), *head)


class Backbone(nn.Sequential):
    """Features of two resolutions."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = F.relu(self[0](x))
        return {"0": first, "1": F.relu(self[1](first))}


def step(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(net(batch[0]), batch[1])


def detect(net: Any, batch: Any) -> Tensor:
    """The losses of a detector, which it gives in training mode only."""
    images, boxes, labels = batch
    targets = [{"boxes": b, "labels": y} for b, y in zip(boxes, labels, strict=True)]
    return sum(net(list(images), targets).values())


def detector() -> tuple[Any, Any]:
    """A single-shot detector on boxes in the corners of images of 32 pixels."""
    body = Backbone(nn.Conv2d(3, 4, 3, 8, 1), nn.Conv2d(4, 4, 3, 2, 1))
    body.out_channels = [4, 4]  # type: ignore[assignment]
    anchors = DefaultBoxGenerator([[2], [2]], scales=[0.3, 0.6, 0.9])
    images, _ = classified(32, 3)
    boxes = torch.tensor([[1.0, 2.0, 14.0, 12.0]]).expand(len(images), 1, 4)
    labels = torch.ones(len(images), 1, dtype=torch.long)
    net = SSD(body, anchors, (32, 32), 2, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    data = torch.utils.data.TensorDataset(images.sigmoid(), boxes, labels)
    return Wrapped(net, detect), torch.utils.data.DataLoader(data, 4)


def images() -> tuple[Tensor, Tensor]:
    """With three channels."""
    return classified(8, 3)


CASES = [
    Case("torchvision", "ViT", wrapped(vit, step, images)),
    Case("torchvision", "residual block", wrapped(residual, step, images)),
    Case("torchvision", "SSD", fitted(detector)),
    Case("torchvision", "SSD in training mode", fitted(detector), {"module_mode": "train"}),
]

if __name__ == "__main__":
    run_all(CASES)
