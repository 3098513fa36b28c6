"""Each namespace of Lightning alone: the other is not there, and nothing asks for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, logging, sys, warnings
missing, there = {missing!r}, {there!r}
sys.modules[missing] = None  # importing it fails, as if it were not installed

import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == missing else find(name, *a)

from lightning_hessrank import HessianRankMonitor
from tests.training import QUIET, loader, plain_module

warnings.simplefilter("ignore")
pl = importlib.import_module(there)
monitor = HessianRankMonitor(method="dense", on_error="raise")
assert isinstance(monitor, pl.Callback)
pl.Trainer(**QUIET, max_epochs=1, callbacks=[monitor]).fit(plain_module(pl), loader())
assert len(monitor.history) == 2
loaded = [m for m in sys.modules if m.split(".")[0] == missing and m != missing]
assert not loaded, loaded
"""


@pytest.mark.parametrize(
    ("there", "missing"),
    [("pytorch_lightning", "lightning"), ("lightning.pytorch", "pytorch_lightning")],
)
def test_a_run_is_measured_with_one_namespace_only(there: str, missing: str) -> None:
    program = PROGRAM.format(there=there, missing=missing)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_neither_is_imported_before_the_monitor_is() -> None:
    program = (
        "import sys, lightning_hessrank\n"
        "from lightning_hessrank import hessian_rank, rank_bound, batch_bound, toeplitz_matrix\n"
        "assert not {'lightning', 'pytorch_lightning', 'matplotlib'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_package_itself_imports_at_once() -> None:
    program = "import sys, lightning_hessrank.cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
