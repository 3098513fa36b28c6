"""timm: a vision transformer and a mixer."""

from __future__ import annotations

import torch.nn.functional as F
from timm import models
from torch import Tensor, nn

from tests.thirdparty.common import Case, run_all, wrapped
from tests.thirdparty.images import classified


def vit() -> nn.Module:
    """One block of width 8 on four patches."""
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3}
    return models.VisionTransformer(**sizes, embed_dim=8, depth=1, num_heads=2, mlp_ratio=2.0)


def mixer() -> nn.Module:
    """One block of width 8 on four patches."""
    sizes = {"img_size": 8, "patch_size": 4, "in_chans": 1, "num_classes": 3}
    return models.MlpMixer(**sizes, num_blocks=1, embed_dim=8)


def step(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(net(batch[0]), batch[1])


CASES = [
    Case("timm", "ViT", wrapped(vit, step, classified)),
    Case("timm", "MLP-Mixer", wrapped(mixer, step, classified)),
]

if __name__ == "__main__":
    run_all(CASES)
