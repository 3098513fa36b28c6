"""neuralforecast: models by its own ``fit``, which steps by number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from neuralforecast import NeuralForecast
from neuralforecast.models import GRU, MLP, NHITS

from tests.thirdparty.common import QUIET, Case, Train, run_all, seeded


def forecasting(kind: Any, **options: Any) -> Train:
    """Return how to train a kind of model on four noisy waves."""

    def train(callbacks: list[Any]) -> None:
        t, group = np.tile(np.arange(30), 4), np.repeat(np.arange(4), 30)
        value = np.sin(0.7 * t + group) + 0.1 * np.random.default_rng(0).normal(size=120)
        frame = pd.DataFrame({"unique_id": group, "ds": t, "y": value})
        model = kind(h=2, input_size=6, max_steps=3, callbacks=callbacks, **options, **QUIET)
        NeuralForecast([model], freq=1).fit(frame)

    return seeded(train)


NHITS_ = forecasting(NHITS, mlp_units=3 * [[6, 6]], n_blocks=[1, 1, 1])
MLP_ = forecasting(MLP, hidden_size=6, num_layers=2)
GRU_ = forecasting(GRU, encoder_hidden_size=4, decoder_hidden_size=4, encoder_n_layers=1)
CASES = [
    Case("neuralforecast", "NHITS", NHITS_),
    Case("neuralforecast", "MLP", MLP_),
    Case("neuralforecast", "GRU", GRU_),
]

if __name__ == "__main__":
    run_all(CASES)
