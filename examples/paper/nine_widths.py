"""The table of nine widths: 64-M-M-10 with M = 4, 8, …, 36, cross-entropy, on digits.

    python examples/paper/nine_widths.py

The authors of Singh, Bachmann, Hofmann (2021) keep these ranks in their repository, measured on
MNIST at 8×8 pixels (github.com/dalab/hessian-rank, results/store/width/cross/MNIST). Their inputs
have rank 41. So have the first 41 of scikit-learn's digits, and 41 Gaussian vectors. Nothing else
of the data enters the ranks, and so every number is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, digits, family, gaussian
from pictures import Panel, picture_path, show
from torch import Tensor

#: M -> ranks (outer, functional, total) that the authors found.
PUBLISHED = {
    4: (184, 88, 216),
    8: (336, 208, 464),
    12: (369, 351, 639),
    16: (369, 495, 783),
    20: (369, 639, 927),
    24: (369, 783, 1071),
    28: (369, 927, 1215),
    32: (369, 1071, 1359),
    36: (369, 1215, 1503),
}


def nine(data: tuple[Tensor, Tensor], widths: Sequence[int] = tuple(PUBLISHED)) -> list[Setting]:
    """64-M-M-10 on inputs of rank 41."""
    return family(widths, lambda m: chain([64, m, m, 10]), "cross-entropy", data)


def dense() -> tuple[Tensor, Tensor]:
    """As many Gaussian inputs, none of which has a dead pixel, in ten random classes."""
    inputs, scores = gaussian(41, (64,), 10)
    return inputs, scores.argmax(1)


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [
        Panel("the first 41 digits (r = 41)", "width M", nine(digits(41))),
        Panel("41 Gaussian inputs (r = 41)", "width M", nine(dense())),
    ]
    about = "linear 64-M-M-10, cross-entropy, no biases"
    show(panels, "The table of nine widths", about, path)


if __name__ == "__main__":
    main()
