"""darts: forecasting models by its own ``fit``."""

from __future__ import annotations

from typing import Any

import numpy as np
from darts import TimeSeries
from darts.models import BlockRNNModel, NBEATSModel, TCNModel, TransformerModel

from tests.thirdparty.common import QUIET, Case, Train, run_all, seeded

SIZES: dict[str, Any] = {"input_chunk_length": 6, "output_chunk_length": 2}


def forecasting(kind: Any, **options: Any) -> Train:
    """Return how to train a kind of model on one noisy wave."""

    def train(callbacks: list[Any]) -> None:
        noise = np.random.default_rng(0).normal(size=40)
        series = TimeSeries.from_values(np.sin(0.7 * np.arange(40)) + 0.1 * noise)
        model = kind(
            **SIZES,
            **options,
            n_epochs=1,
            batch_size=16,
            random_state=0,
            pl_trainer_kwargs={**QUIET, "callbacks": callbacks},
        )
        model.fit(series.astype(np.float32))

    return seeded(train)


NBEATS = forecasting(
    NBEATSModel,
    num_stacks=1,
    num_blocks=1,
    num_layers=2,
    layer_widths=8,
    expansion_coefficient_dim=3,
)
TCN = forecasting(TCNModel, num_filters=3, kernel_size=3)
LSTM = forecasting(BlockRNNModel, model="LSTM", hidden_dim=4)
TRANSFORMER = forecasting(
    TransformerModel,
    d_model=4,
    nhead=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    dim_feedforward=8,
)

CASES = [
    Case("darts", "N-BEATS", NBEATS),
    Case("darts", "TCN", TCN),
    Case("darts", "LSTM", LSTM),
    Case("darts", "Transformer", TRANSFORMER),
]

if __name__ == "__main__":
    run_all(CASES)
