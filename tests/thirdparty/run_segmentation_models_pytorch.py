"""segmentation_models_pytorch: a U-Net with its own Dice and focal losses."""

from __future__ import annotations

import segmentation_models_pytorch as smp
from torch import Tensor, nn

from tests.thirdparty.common import Case, run_all, wrapped
from tests.thirdparty.images import segmented

NAME = "tu-mobilenetv3_small_050"


def unet() -> nn.Module:
    """The first stages of a small MobileNet, and a narrow decoder."""
    widths = (8, 4, 4)
    return smp.Unet(NAME, 3, None, decoder_channels=widths, in_channels=1, classes=1)


DICE, FOCAL = smp.losses.DiceLoss("binary"), smp.losses.FocalLoss("binary")


def dice(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """One minus the overlap."""
    return DICE(net(batch[0]), batch[1])


def focal(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross-entropy, less where it is small."""
    return FOCAL(net(batch[0]), batch[1])


OPTIONS = {"max_seconds": 20.0}
CASES = [
    Case("segmentation_models_pytorch", "U-Net, Dice", wrapped(unet, dice, segmented), OPTIONS),
    Case("segmentation_models_pytorch", "U-Net, focal", wrapped(unet, focal, segmented), OPTIONS),
]

if __name__ == "__main__":
    run_all(CASES)
