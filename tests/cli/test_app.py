"""The program: it answers at once, and whatever goes wrong is one line with an exit code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_hessrank

BAD = """
import torch
from torch import nn

class Raising(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
    def forward(self, x):
        return {"logits": self.layer(x)}["logit"]

class Unbuildable(nn.Module):
    def __init__(self):
        super().__init__()
        raise KeyError("config\\nwith two lines")

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 2)
    def forward(self, tokens):
        assert tokens.dtype == torch.int64, tokens.dtype
        return self.head(self.embedding(tokens).mean(1))

def loss():
    raise ZeroDivisionError("of my own")
"""


def test_version_needs_no_torch() -> None:
    program = (
        "import sys\n"
        "from lightning_hessrank.cli import app\n"
        "try:\n    app(['--version'])\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"hessrank {lightning_hessrank.__version__}\n"


def test_help_lists_every_command_as_it_introduces_itself(hessrank: Any) -> None:
    shown = hessrank("--help").stdout
    for command in ("bound", "measure", "sweep", "toeplitz"):
        assert f"  {command} " in shown
        assert hessrank(command, "--help").exit_code == 0
    assert hessrank("bund").exit_code == 2


@pytest.mark.parametrize("option", ["--data DATA", "-i, --input SHAPE", "--loss LOSS"])
def test_options_are_named_alike(hessrank: Any, option: str) -> None:
    for command in ("bound", "sweep"):
        assert f"  {option} " in hessrank(command, "--help").stdout
    names = {"-o, --output": ("measure", "sweep", "report"), "MODEL": ("measure", "sweep", "bound")}
    for name, commands in names.items():
        for command in commands:
            assert name in hessrank(command, "--help").stdout, command


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("bound", "bad.py:Raising", "-i", "6"),
            1,
            "Error: Raising with an input of shape (1, 6): bad.py:10: KeyError: 'logit'",
        ),
        (
            ("bound", "bad.py:Unbuildable", "-i", "6"),
            2,
            "Error: Invalid value for 'MODEL': building 'bad.py:Unbuildable' failed: bad.py:15: "
            "KeyError: 'config\\nwith two lines'",
        ),
        (
            ("bound", "torch.nn:Linear(6, 3)", "-i", "6", "--loss", "bad.py:loss()"),
            2,
            "Error: Invalid value for '--loss': building 'bad.py:loss()' failed: bad.py:27: "
            "ZeroDivisionError: of my own",
        ),
        (
            ("bound", "script.py:Net", "-i", "6"),
            2,
            "Error: Invalid value for 'MODEL': running 'script.py' failed: it ends the program "
            "(SystemExit: 3); put what it runs as a script below `if __name__ == '__main__':`",
        ),
        (
            ("bound", "bad.py:Tokens", "-i", "5:int65"),
            2,
            "Error: Invalid value for '--input': 'int65' is not a dtype of torch; write, as for "
            "tokens, 5:int64",
        ),
        (
            ("bound", "bad.py:Tokens"),
            2,
            "Error: Invalid value for '--input': say what the network takes: the shape of one "
            "sample, as 3,32,32, or --data",
        ),
        (
            ("measure", "bad.py:Tokens", "--checkpoints", ".", "--rtol", "nan"),
            2,
            "Error: Invalid value for '--rtol': 'nan' is no relative tolerance; write a number "
            "from 0 up to, not including, 1, as 1e-3, or machine",
        ),
        (
            ("measure", "bad.py:Tokens", "--checkpoints", ".", "--rtol", "much"),
            2,
            "Error: Invalid value for '--rtol': 'much' is no relative tolerance; write a number "
            "from 0 up to, not including, 1, as 1e-3, or machine",
        ),
    ],
)
def test_errors_are_one_line(
    here: Path, hessrank: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    Path("bad.py").write_text(BAD)
    Path("script.py").write_text("raise SystemExit(3)\n")
    result = hessrank(*arguments)
    assert result.stderr.splitlines()[-1] == message
    assert result.exit_code == code
    assert "Traceback" not in result.output


def test_tokens_reach_the_network_as_tokens(here: Path, hessrank: Any) -> None:
    Path("bad.py").write_text(BAD)
    result = hessrank("bound", "bad.py:Tokens", "-i", "5:int64")
    assert "there is no bound for this network: the network has no floating-point inputs" in (
        result.stderr
    )
    assert (
        "bad.py" in hessrank("bound", "bad.py:Tokens", "-i", "5").stderr
    )  # of floats: its own error


def test_what_fails_for_every_checkpoint_is_said_once(here: Path, hessrank: Any) -> None:
    Path("full").mkdir()
    for step in range(3):
        content = {"state_dict": {"a": torch.zeros(step + 1)}, "global_step": step}
        torch.save(content, f"full/{step}.ckpt")
    result = hessrank("measure", "torch.nn:ReLU", "--checkpoints", "full", "--data", "train:batch")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "not measured: any of the 3 checkpoints: 'torch.nn:ReLU' gives a ReLU, which is no "
        "LightningModule (it has no training_step)"
    )
    assert "tensorboard" not in result.stdout  # there is nothing to look at
    assert "measurements.csv" not in result.output


class OwnError(Exception):
    """Not of any builtin kind."""


@pytest.mark.parametrize("kind", [LookupError, AssertionError, ImportError, OwnError])
def test_what_escapes_a_command_is_one_line(
    here: Path, hessrank: Any, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    from lightning_hessrank.cli import bound

    def broken(*args: Any) -> Any:
        raise kind("never\nexpected")

    monkeypatch.setattr(bound, "render", broken)
    result = hessrank("bound", "torch.nn:Linear(6, 3)", "-i", "6")
    assert re.fullmatch(rf"Error: \S+:\d+: {kind.__name__}: never expected\n", result.stderr)
    assert result.exit_code == 1
