"""pytorch-forecasting: three of its own Lightning modules on synthetic series."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from pytorch_forecasting import DeepAR, NBeats, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import SMAPE, NormalDistributionLoss, QuantileLoss

from tests.thirdparty.common import Case, fitted, run_all


def series(**options: Any) -> TimeSeriesDataSet:
    """Four noisy waves of 20 points, six of which predict the next two."""
    t = np.tile(np.arange(20), 4)
    group = np.repeat(np.arange(4), 20)
    noise = np.random.default_rng(0).normal(size=80)
    value = 3 + np.sin(0.7 * t + group) + 0.1 * noise
    frame = pd.DataFrame({"t": t, "group": group.astype(str), "value": value})
    return TimeSeriesDataSet(
        frame,
        time_idx="t",
        target="value",
        group_ids=["group"],
        max_encoder_length=6,
        max_prediction_length=2,
        time_varying_unknown_reals=["value"],
        **options,
    )


def nbeats() -> tuple[Any, Any]:
    """One generic block."""
    data = series()
    net = NBeats.from_dataset(
        data,
        stack_types=["generic"],
        num_blocks=[1],
        num_block_layers=[2],
        widths=[8],
        expansion_coefficient_lengths=[3],
        loss=SMAPE(),
        logging_metrics=[],
    )
    return net, data.to_dataloader(batch_size=16, num_workers=0)


def deepar() -> tuple[Any, Any]:
    """A recurrent network that tells a normal distribution."""
    data = series()
    net = DeepAR.from_dataset(
        data, hidden_size=4, rnn_layers=1, loss=NormalDistributionLoss(), logging_metrics=[]
    )
    return net, data.to_dataloader(batch_size=16, num_workers=0)


def tft() -> tuple[Any, Any]:
    """A temporal fusion transformer that tells three quantiles."""
    data = series()
    net = TemporalFusionTransformer.from_dataset(
        data,
        hidden_size=4,
        attention_head_size=1,
        hidden_continuous_size=3,
        loss=QuantileLoss([0.1, 0.5, 0.9]),
        logging_metrics=[],
    )
    return net, data.to_dataloader(batch_size=16, num_workers=0)


CASES = [
    Case("pytorch_forecasting", "N-BEATS", fitted(nbeats)),
    Case("pytorch_forecasting", "DeepAR", fitted(deepar)),
    Case("pytorch_forecasting", "TFT", fitted(tft)),
]

if __name__ == "__main__":
    run_all(CASES)
