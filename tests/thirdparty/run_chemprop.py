"""chemprop: message passing on molecules, regression and classification."""

from __future__ import annotations

from typing import Any

from chemprop import data, models
from chemprop import nn as parts

from tests.thirdparty.common import Case, fitted, run_all

SMILES = ["CCO", "CCN", "CCC", "c1ccccc1", "CC(=O)O", "CNC", "COC", "C#N", "CCCl", "OCCO"]


def molecules(head: Any, targets: list[float]) -> tuple[Any, Any]:
    """Ten molecules, each with a number."""
    points = [
        data.MoleculeDatapoint.from_smi(smi, [y]) for smi, y in zip(SMILES, targets, strict=True)
    ]
    net = models.MPNN(
        parts.BondMessagePassing(d_h=4, depth=2), parts.MeanAggregation(), head, warmup_epochs=1
    )
    loader = data.build_dataloader(data.MoleculeDataset(points), batch_size=10, num_workers=0)
    return net, loader


def regression() -> tuple[Any, Any]:
    """Squared error."""
    return molecules(parts.RegressionFFN(input_dim=4, hidden_dim=5), [0.1 * i for i in range(10)])


def classification() -> tuple[Any, Any]:
    """Cross-entropy of two classes."""
    head = parts.BinaryClassificationFFN(input_dim=4, hidden_dim=5)
    return molecules(head, [float(i % 2) for i in range(10)])


CASES = [
    Case("chemprop", "MPNN regression", fitted(regression)),
    Case("chemprop", "MPNN classification", fitted(classification)),
]

if __name__ == "__main__":
    run_all(CASES)
