"""All questions of the papers, one after the other: ``python examples/paper``.

Prints every table and draws every picture of ``examples/README.md``; each script also runs alone.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Sequence

from common import print_table

SCRIPTS = (
    *("channels", "filter_size", "stride", "pooling", "depth", "width", "nine_widths"),
    *("samples", "bias", "sharing", "losses", "activations", "training"),
)


def main(argv: Sequence[str] | None = None) -> None:
    seconds = []
    for name in SCRIPTS:
        print(f"\n=== {name} ===")
        begin = time.perf_counter()
        importlib.import_module(name).main(argv)
        seconds.append((name, f"{time.perf_counter() - begin:.0f}"))
    print()
    print_table(("script", "seconds"), seconds)


if __name__ == "__main__":
    main()
