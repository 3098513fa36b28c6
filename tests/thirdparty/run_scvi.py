"""scvi-tools: a variational autoencoder of single cells, by its own ``train``."""

from __future__ import annotations

from typing import Any

import anndata
import numpy as np
import scvi

from tests.thirdparty.common import Case, Train, run_all, seeded


def cells(kind: Any, **options: Any) -> Train:
    """Return how to train a model on the counts of 40 cells and 12 genes."""

    def train(callbacks: list[Any]) -> None:
        counts = np.random.default_rng(0).poisson(3.0, (40, 12)).astype(np.float32)
        data = anndata.AnnData(counts)
        kind.setup_anndata(data)
        model = kind(data, n_hidden=5, n_latent=2, **options)
        model.train(
            max_epochs=1, accelerator="cpu", train_size=1.0, batch_size=20, callbacks=callbacks
        )

    def seed(number: int) -> None:
        scvi.settings.seed = number

    return seeded(train, seed)


CASES = [
    Case("scvi-tools", "SCVI", cells(scvi.model.SCVI, n_layers=1)),
    Case("scvi-tools", "LinearSCVI", cells(scvi.model.LinearSCVI)),
]

if __name__ == "__main__":
    run_all(CASES)
