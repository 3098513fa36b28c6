"""Small images, their classes and their masks, for the packages of vision."""

from __future__ import annotations

import torch
from torch import Tensor


def classified(size: int = 8, channels: int = 1, kinds: int = 3) -> tuple[Tensor, Tensor]:
    """Dense random images ``(16, channels, size, size)`` and classes."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(16, channels, size, size, generator=generator)
    return images, torch.randint(0, kinds, (16,), generator=generator)


def segmented(size: int = 16) -> tuple[Tensor, Tensor]:
    """Random images and which of their pixels belong to something."""
    images, _ = classified(size)
    return images, (images > 0.3).long()
