"""``hessrank bound``: the same table as ``rank_bound``, in three forms."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_hessrank
from lightning_hessrank import RankBound, rank_bound
from lightning_hessrank.dashboard.text import bound_table


def test_text_is_the_table_of_rank_bound(here: Path, hessrank: Any) -> None:
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def mlp(width): return nn.Sequential(nn.Linear(6, width), nn.Linear(width, 3))\n"
    )
    result = hessrank("bound", "nets.py:mlp(width=5)", "--input", "6", "--loss", "cross_entropy")
    net = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3))
    expected = rank_bound(net, torch.zeros(1, 6), loss="cross_entropy")
    assert (result.exit_code, result.stdout) == (0, f"{expected}\n")


def test_json_round_trips(hessrank: Any) -> None:
    result = hessrank("bound", "torch.nn:Linear(10, 3)", "-i", "10", "--format", "json")
    found = RankBound.from_dict(json.loads(result.stdout))
    assert found == rank_bound(nn.Linear(10, 3), torch.zeros(1, 10))


def test_markdown_is_the_table_of_the_dashboard(hessrank: Any) -> None:
    result = hessrank("bound", "torch.nn:Linear(10, 3)", "-i", "10", "--format", "markdown")
    expected = rank_bound(nn.Linear(10, 3), torch.zeros(1, 10))
    assert result.stdout == f"{bound_table(expected)}\n"
    assert "| **total** | 33 |" in result.stdout


def test_input_rank_and_kind_are_passed_on(hessrank: Any) -> None:
    common = ("bound", "torch.nn:Linear(10, 3, bias=False)", "-i", "10", "--format", "json")
    limited = json.loads(hessrank(*common, "--input-rank", "4").stdout)
    assert limited["total"] == 12
    for kind in ("closed-form", "generic", "patch"):
        result = hessrank(*common, "--kind", kind)
        assert result.exit_code == 0, result.stderr
        assert json.loads(result.stdout)["kind"] == kind


def test_loss_can_be_named(hessrank: Any) -> None:
    common = ("bound", "torch.nn:Linear(10, 3)", "-i", "10", "--format", "json", "--loss")
    for loss in ("torch.nn:CrossEntropyLoss", "torch.nn.functional:cross_entropy", "cross_entropy"):
        assert json.loads(hessrank(*common, loss).stdout)["total"] == 22


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("torch.nn:Linear(10, 3)", "-i", "10,"),
            2,
            "Error: Invalid value for '--input': '10,' is not a shape; write positive whole "
            "numbers with commas, as 3,32,32",
        ),
        (
            ("torch.nn:Linear(10, 3)", "-i", "10", "--loss", "mae"),
            2,
            "Error: Invalid value for '--loss': 'mae' is not a known loss; write "
            "package.module:name, or one of ",
        ),
        (
            ("torch.nn:Linear(10)", "-i", "10"),
            2,
            "Error: Invalid value for 'MODEL': 'torch.nn:Linear(10)' cannot be called like this: "
            "missing a required argument: 'out_features'; its signature is Linear(in_features: "
            "int, out_features: int, bias: bool = True, device=None, dtype=None) -> None",
        ),
        (
            ("torch.nn:Conv2d(3, 0, 'a')", "-i", "3,8,8"),
            2,
            "Error: Invalid value for 'MODEL': building \"torch.nn:Conv2d(3, 0, 'a')\" failed: ",
        ),
        (
            ("torch.nn:Linear(10, 3)", "-i", "9"),
            1,
            "Error: Linear with an input of shape (1, 9): ",
        ),
        (
            ("torch.nn:ReLU", "-i", "9"),
            1,
            "Error: ReLU with an input of shape (1, 9): ",
        ),
    ],
)
def test_errors(hessrank: Any, arguments: tuple[str, ...], code: int, message: str) -> None:
    result = hessrank("bound", *arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.splitlines()[-1].startswith(message)
    assert result.stdout == ""


def test_no_bound_is_an_error_with_the_reason(here: Path, hessrank: Any) -> None:
    attention = "torch.nn:TransformerEncoderLayer(4, 2, 8)"
    result = hessrank("bound", attention, "--input", "5,4")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: there is no bound for this network: ")


def test_module_without_forward_is_told_apart(here: Path, hessrank: Any) -> None:
    Path("bare.py").write_text(
        "import pytorch_lightning as pl\n"
        "from torch import nn\n"
        "class Bare(pl.LightningModule):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.net = nn.Linear(3, 2)\n"
    )
    result = hessrank("bound", "bare.py:Bare", "--input", "3")
    assert result.exit_code == 1
    assert result.stderr == (
        "Error: Bare has no forward(); name the network inside it, as 'bare.py:Bare().net'\n"
    )
    assert hessrank("bound", "bare.py:Bare().net", "--input", "3").exit_code == 0


def test_help_teaches(hessrank: Any) -> None:
    overview = hessrank("--help").stdout
    assert "Exit codes: 0 done; 1 it could not be done" in overview
    for command in ("bound", "measure", "sweep", "toeplitz"):
        assert f"  {command} " in overview
        text = hessrank(command, "--help").stdout
        assert "For example," in text
        assert f"hessrank {command} " in text
    assert hessrank("--version").stdout == f"hessrank {lightning_hessrank.__version__}\n"


@pytest.mark.slow
def test_python_dash_m_is_the_same_program() -> None:
    command = [sys.executable, "-m", "lightning_hessrank", "bound", "torch.nn:Linear(2, 1)"]
    done = subprocess.run([*command, "-i", "2"], capture_output=True, text=True, check=True)
    expected = rank_bound(nn.Linear(2, 1), torch.zeros(1, 2))
    assert done.stdout == f"{expected}\n"
