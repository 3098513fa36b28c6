"""The table of nine widths: 64-M-M-10 with M = 4, 8, …, 36, cross-entropy, on digits.

    python examples/paper/nine_widths.py

The authors of Singh, Bachmann, Hofmann (2021) keep these ranks in their repository, measured on
MNIST at 8×8 pixels (github.com/dalab/hessian-rank, results/store/width/cross/MNIST). Their inputs
have rank 41. So have the first 41 of scikit-learn's digits, and so every number is the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, digits, family
from pictures import Panel, picture_path, show

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


def nine(widths: Sequence[int] = tuple(PUBLISHED)) -> list[Setting]:
    """64-M-M-10 on the first 41 digits."""
    return family(widths, lambda m: chain([64, m, m, 10]), "cross-entropy", digits(41))


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    panels = [Panel("64-M-M-10, 41 digits (r = 41), cross-entropy", "width M", nine())]
    show(panels, "The table of nine widths", "linear networks without biases", path)


if __name__ == "__main__":
    main()
