"""The callback from a YAML file, with LightningCLI.

python examples/cli.py fit --config examples/cli.yaml
python examples/cli.py fit --config examples/cli.yaml --model.activation tanh
"""

from __future__ import annotations

import warnings

from digits import Classifier, Digits
from pytorch_lightning.cli import LightningCLI


def main() -> None:
    warnings.filterwarnings("ignore", ".*does not have many workers.*")
    warnings.filterwarnings("ignore", ".*LeafSpec.*")
    LightningCLI(Classifier, Digits, seed_everything_default=0)


if __name__ == "__main__":
    main()
