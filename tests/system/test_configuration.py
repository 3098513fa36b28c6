"""From a configuration file: every argument can be given in a LightningCLI YAML."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

from lightning_hessrank import HessianRankMonitor
from tests.training import NAMESPACES, TRAINS

pytestmark = TRAINS

pytest.importorskip("jsonargparse")

CONFIG = """
seed_everything: 1
trainer:
  accelerator: cpu
  logger: false
  callbacks:
    class_path: lightning_hessrank.HessianRankMonitor
    init_args:
      every_n_epochs: 2
      every_n_steps: null
      method: dense
      rtol: 1.0e-6
      max_samples: 64
      loss_fn: tests.system.test_configuration.data_loss
      module_mode: train
      layers: true
      max_overhead: 0.05
      on_error: raise
      progress_bar: false
      name: curvature
      seed: 3
"""


def data_loss(module: Any, batch: Any) -> Any:
    return module.loss(batch)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Lightning's, of jsonargparse
@pytest.mark.parametrize("name", NAMESPACES)
def test_every_argument_can_be_configured(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["train"])
    cli = importlib.import_module(f"{name}.cli")
    demos = importlib.import_module(f"{name}.demos.boring_classes")
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG)
    made = cli.LightningCLI(
        demos.BoringModel, run=False, save_config_callback=None, args=["--config", str(path)]
    )
    (monitor,) = (x for x in made.trainer.callbacks if isinstance(x, HessianRankMonitor))
    settings = monitor.settings
    assert (settings.every_n_epochs, settings.every_n_steps) == (2, None)
    assert (settings.method, settings.rtol, settings.max_samples) == ("dense", 1e-6, 64)
    assert settings.loss_fn is data_loss
    assert (settings.module_mode, settings.layers, settings.max_overhead) == ("train", True, 0.05)
    assert (settings.on_error, settings.progress_bar) == ("raise", False)
    assert (settings.name, settings.seed) == ("curvature", 3)


@pytest.mark.parametrize("name", NAMESPACES)
def test_is_welcome_as_a_single_object_in_both_namespaces(name: str) -> None:
    pl = importlib.import_module(name)
    monitor = HessianRankMonitor()
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=monitor)
    assert monitor in trainer.callbacks
