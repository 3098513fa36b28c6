"""MONAI: a U-Net with the sum of Dice loss and cross-entropy."""

from __future__ import annotations

from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn

from tests.thirdparty.common import Case, run_all, wrapped
from tests.thirdparty.images import segmented


def unet() -> nn.Module:
    """Two levels with 3 and 6 channels."""
    return UNet(2, 1, 2, channels=(3, 6), strides=(2,))


LOSS = DiceCELoss(to_onehot_y=True, softmax=True)


def step(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """Dice loss and cross-entropy."""
    return LOSS(net(batch[0]), batch[1])


def images() -> tuple[Tensor, Tensor]:
    """Of 8 by 8 pixels."""
    return segmented(8)


CASES = [Case("monai", "U-Net, DiceCE", wrapped(unet, step, images))]

if __name__ == "__main__":
    run_all(CASES)
