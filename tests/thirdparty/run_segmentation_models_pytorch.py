"""segmentation_models_pytorch: U-Nets of two sizes with its own Dice and focal losses."""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead, SegmentationModel
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from tests.thirdparty.common import Case, run_all, wrapped
from tests.thirdparty.images import segmented

NAME = "tu-mobilenetv3_small_050"


def unet() -> nn.Module:
    """The first stages of a small MobileNet, and a narrow decoder."""
    widths = (8, 4, 4)
    return smp.Unet(NAME, 3, None, decoder_channels=widths, in_channels=1, classes=1)


class Encoder(nn.Module):
    """Features of three resolutions, the image first, of fewer parameters than any of its own."""

    output_stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, 2, 1)
        self.second = nn.Conv2d(3, 4, 3, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        first = F.relu(self.first(x))
        return [x, first, F.relu(self.second(first))]


class SmallUnet(SegmentationModel):
    """The package's model, decoder and head, on an encoder of one's own."""

    requires_divisible_input_shape = False

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = UnetDecoder((1, 3, 4), (4, 3), n_blocks=2)
        self.segmentation_head = SegmentationHead(3, 1, activation=None)
        self.classification_head = None
        self.initialize()


DICE, FOCAL = smp.losses.DiceLoss("binary"), smp.losses.FocalLoss("binary")


def dice(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """One minus the overlap."""
    return DICE(net(batch[0]), batch[1])


def focal(net: nn.Module, batch: list[Tensor]) -> Tensor:
    """Cross-entropy, less where it is small."""
    return FOCAL(net(batch[0]), batch[1])


OPTIONS = {"max_seconds": 20.0}
CASES = [
    Case("segmentation_models_pytorch", "small U-Net, Dice", wrapped(SmallUnet, dice, segmented)),
    Case("segmentation_models_pytorch", "small U-Net, focal", wrapped(SmallUnet, focal, segmented)),
    Case("segmentation_models_pytorch", "U-Net, Dice", wrapped(unet, dice, segmented), OPTIONS),
    Case("segmentation_models_pytorch", "U-Net, focal", wrapped(unet, focal, segmented), OPTIONS),
]

if __name__ == "__main__":
    run_all(CASES)
