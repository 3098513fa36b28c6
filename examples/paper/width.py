"""Width: rank grows with the widths, and a single narrow layer holds all the others down.

    python examples/paper/width.py

Linear fully connected networks 16-M-M-M-8 on Gaussian data, squared error. Left, all hidden layers
grow together: p grows like M², the rank like M. Right, only the middle one: below K = 8 units it is
a bottleneck, which costs every layer; beyond, each further unit adds 2K = 16.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, family, gaussian
from pictures import Panel, picture_path, show


def all_layers(widths: Sequence[int] = (2, 4, 6, 8, 12, 16, 20, 24, 28)) -> list[Setting]:
    """16-M-M-M-8."""
    data = gaussian(100, (16,), 8)
    return family(widths, lambda width: chain([16, width, width, width, 8]), "MSE", data)


def middle_layer(widths: Sequence[int] = (1, 2, 3, 4, 6, 8, 10, 12, 14, 16)) -> list[Setting]:
    """16-16-M-16-8."""
    data = gaussian(100, (16,), 8)
    return family(widths, lambda width: chain([16, 16, width, 16, 8]), "MSE", data)


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [
        Panel("all hidden layers: 16-M-M-M-8", "width M", all_layers()),
        Panel("the middle one: 16-16-M-16-8", "width M", middle_layer()),
    ]
    about = "linear fully connected networks, Gaussian data, MSE, no biases"
    show(panels, "Rank against width", about, path)


if __name__ == "__main__":
    main()
