"""Number of samples: the outer part grows with it until the data span no more, the other hardly.

    python examples/paper/samples.py

Linear 64-10-10-10 without biases. The rank of N digits is N at first and 53 for 100 of them; N
Gaussian vectors have rank N up to 64. Few samples make q = min(r, K', M) small, and both parts with
it; from there on only the outer part follows r.
"""

from __future__ import annotations

from collections.abc import Sequence

from common import Setting, chain, digits, drawn, gaussian
from pictures import Panel, picture_path, show
from torch import Tensor

COUNTS = (1, 2, 4, 6, 8, 10, 15, 20, 30, 40, 50, 60, 80, 100, 150)


def samples(
    data: tuple[Tensor, Tensor], loss: str, counts: Sequence[int] = COUNTS
) -> list[Setting]:
    """The first samples of the data."""
    model, (inputs, targets) = drawn(lambda: chain([64, 10, 10, 10])), data
    return [Setting(n, model, loss, inputs[:n], targets[:n]) for n in counts]


def main(argv: Sequence[str] | None = None) -> None:
    path = picture_path(argv, __file__, __doc__)
    dense = gaussian(max(COUNTS), (64,), 10)
    panels = [
        Panel("digits, cross-entropy", "samples N", samples(digits(max(COUNTS)), "cross-entropy")),
        Panel("Gaussian, MSE", "samples N", samples(dense, "MSE")),
    ]
    about = "linear 64-10-10-10 without biases"
    show(panels, "Rank against the number of samples", about, path)


if __name__ == "__main__":
    main()
