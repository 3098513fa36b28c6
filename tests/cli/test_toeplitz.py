"""``hessrank toeplitz``: the matrix of a layer, in text and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def _terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_numbers_of_the_weights(hessrank: Any) -> None:
    result = hessrank("toeplitz", "Conv1d(1, 1, 3, bias=False)", "--input", "6")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        "Conv1d(1, 1, kernel_size=(3,), stride=(1,), bias=False)",
        "4 × 6, 50% zeros, 3 distinct weights",
        "",
        "1 2 3 . . .",
        ". 1 2 3 . .",
        ". . 1 2 3 .",
        ". . . 1 2 3",
    ]


def test_values_of_the_weights(here: Path, hessrank: Any) -> None:
    Path("layers.py").write_text(
        "import torch\n"
        "layer = torch.nn.Conv1d(1, 1, 2, stride=2, bias=False)\n"
        "torch.nn.init.constant_(layer.weight, 0.25)\n"
    )
    result = hessrank("toeplitz", "layers.py:layer", "-i", "4", "--values")
    assert result.stdout.splitlines()[-2:] == ["0.25 0.25    .    .", "   .    . 0.25 0.25"]


def test_layer_of_a_network_by_name(here: Path, hessrank: Any) -> None:
    Path("nets.py").write_text(
        "from torch import nn\n"
        "def net(): return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Linear(3, 2))\n"
    )
    result = hessrank("toeplitz", "nets.py:net", "--name", "2", "--input", "3")
    assert result.stdout.splitlines()[-2:] == ["1 2 3", "4 5 6"]
    result = hessrank("toeplitz", "nets.py:net", "--name", "3", "--input", "3")
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == (
        "Error: Invalid value for '--name': 'nets.py:net' has no layer '3'; it has 0, 2"
    )


def test_picture(here: Path, hessrank: Any) -> None:
    result = hessrank("toeplitz", "Conv2d(2, 3, 3)", "-i", "8,8", "--save", "t.png")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == "written to t.png"
    assert Path("t.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("Conv2d(2, 3, 3)", "-i", "8,8"),
            1,
            "Error: 128 columns are too wide for this terminal; pass --save toeplitz.png",
        ),
        (("Conv2d(1, 1, 3)", "-i", "8"), 1, "Error: Conv2d with an input of size (8,): "),
        (("Conv1d(1, 1, 3)", "-i", "2"), 1, "Error: Conv1d with an input of size (2,): "),
        (("ReLU", "-i", "8"), 1, "Error: ReLU with an input of size (8,): "),
        (
            ("Conv1d(1, 1)", "-i", "8"),
            2,
            "Error: Invalid value for 'LAYER': 'Conv1d(1, 1)' cannot be called like this: missing "
            "a required argument: 'kernel_size'",
        ),
        (
            ("Convd(1, 1, 3)", "-i", "8"),
            2,
            "Error: Invalid value for 'LAYER': 'torch.nn' has no 'Convd' for 'Convd(1, 1, 3)'; did "
            "you mean 'Conv",
        ),
        (
            ("Conv1d(1, 1, 3)", "-i", "5", "--save", "nowhere/t.png"),
            1,
            "Error: cannot write nowhere/t.png: ",
        ),
        (
            ("Conv1d(1, 1, 3)", "-i", "5", "--save", "t.xyz"),
            1,
            "Error: cannot write t.xyz: ",
        ),
    ],
)
def test_errors(
    here: Path, hessrank: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = hessrank("toeplitz", *arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.splitlines()[-1].startswith(message), result.stderr
