"""GluonTS: probabilistic forecasting by its own estimators."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from gluonts.dataset.common import ListDataset
from gluonts.torch import DeepAREstimator, SimpleFeedForwardEstimator

from tests.thirdparty.common import QUIET, Case, Train, run_all, seeded


def forecasting(kind: Any, **options: Any) -> Train:
    """Return how to train an estimator on four noisy waves."""

    def train(callbacks: list[Any]) -> None:
        waves = np.sin(0.7 * np.arange(40) + np.arange(4)[:, None])
        start = pd.Period("2020-01-01", "D")
        data = ListDataset([{"start": start, "target": 3 + x} for x in waves], freq="D")
        own = {name: x for name, x in QUIET.items() if name != "enable_checkpointing"}
        trainer = {**own, "callbacks": callbacks, "max_epochs": 1}
        kind(prediction_length=2, **options, num_batches_per_epoch=3, trainer_kwargs=trainer).train(
            data
        )

    return seeded(train)


FORWARD = forecasting(
    SimpleFeedForwardEstimator, context_length=6, hidden_dimensions=[6], batch_size=16
)
DEEPAR = forecasting(
    DeepAREstimator, freq="D", context_length=4, hidden_size=4, num_layers=1, batch_size=8
)
CASES = [
    Case("gluonts", "feed-forward", FORWARD),
    Case("gluonts", "DeepAR", DEEPAR),
]

if __name__ == "__main__":
    run_all(CASES)
