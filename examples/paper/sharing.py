"""Weight sharing: the same connections with shared weights, with weights of their own, and all.

    python examples/paper/sharing.py

A convolution (CNN), the same local connections without weight sharing (LCN, by ``unfold`` and
``einsum``), and a fully connected layer of the same 24 units (FCN), each with a linear head: d = 8
inputs, filters of size 3, 4 channels at 6 positions, K = 1, 2, 3 outputs. Gaussian data, squared
error, no biases. Sharing takes away far more rank than locality does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from common import Setting, chain, family, gaussian
from pictures import Panel, picture_path, show
from torch import Tensor, nn

SIZE, TAPS, CHANNELS = 8, 3, 4
POSITIONS = SIZE - TAPS + 1


class LocallyConnected(nn.Module):
    """A 1-D convolution of one input channel whose weights differ at every position."""

    def __init__(self, channels: int, positions: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, positions, taps))

    def forward(self, x: Tensor) -> Tensor:
        patches = x.squeeze(1).unfold(1, self.weight.shape[2], 1)  # (samples, positions, taps)
        return torch.einsum("npt,cpt->ncp", patches, self.weight)


def first_layers() -> dict[str, nn.Module]:
    """The three ways to connect 8 inputs with 24 units."""
    return {
        "CNN": nn.Conv1d(1, CHANNELS, TAPS, bias=False),
        "LCN": LocallyConnected(CHANNELS, POSITIONS, TAPS),
        "FCN": chain([SIZE, CHANNELS * POSITIONS]),
    }


def connections(outputs: int) -> list[Setting]:
    """The three networks with ``outputs`` outputs."""

    def network(kind: str) -> nn.Module:
        return nn.Sequential(first_layers()[kind], chain([CHANNELS * POSITIONS, outputs]))

    return family(first_layers(), network, "MSE", gaussian(100, (1, SIZE), outputs))


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [Panel(f"K = {k}", "first layer", connections(k)) for k in (1, 2, 3)]
    about = "linear networks, d = 8, filter 3, 4 channels (24 units), Gaussian data, MSE, no biases"
    show(panels, "Rank against weight sharing and locality", about, path)


if __name__ == "__main__":
    main()
