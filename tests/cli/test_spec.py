"""Objects named on the command line: found, built, and errors that say what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from lightning_hessrank.cli.spec import FORM, Spec, SpecError


def test_module_and_arguments() -> None:
    layer = Spec.parse("torch.nn:Linear(4, out_features=3, bias=False)").build_module()
    assert isinstance(layer, nn.Linear)
    assert layer.weight.shape == (3, 4)
    assert layer.bias is None


def test_file_in_the_current_folder(here: Path) -> None:
    assert Spec.parse("train.py:Net(width=7)").build().net[0].out_features == 7
    assert Spec.parse("train:Net").build().net[0].out_features == 4
    assert Spec.parse(f"{here / 'train.py'}:Net()").build().net[0].out_features == 4
    assert Spec.parse("train.py:NUMBER").build() == 3


def test_part_of_what_is_built(here: Path) -> None:
    assert isinstance(Spec.parse("train.py:Net().net").build(), nn.Sequential)
    assert Spec.parse("train.py:Net(width=7).net").build()[0].out_features == 7
    with pytest.raises(SpecError) as caught:
        Spec.parse("train.py:Net().nets").build()
    assert str(caught.value).startswith("'Net' has no 'nets' for 'train.py:Net().nets'; did you ")


def test_defaults_fill_in_what_is_taken_and_not_given(here: Path) -> None:
    spec = Spec.parse("train.py:Net(width=7)")
    module = spec.build(width=5, lr=0.3, unknown=1)
    assert module.net[0].out_features == 7
    assert module.hparams.lr == 0.3


def test_default_module_and_nested_names() -> None:
    spec = Spec.parse("Conv1d(1, 2, 3)", default_module="torch.nn")
    assert isinstance(spec.build_module(), nn.Conv1d)
    assert Spec.parse("torch:nn.Linear").target is nn.Linear


def test_a_module_is_returned_as_it_is(here: Path) -> None:
    Path("made.py").write_text("import torch\nnet = torch.nn.Linear(2, 1)\n")
    spec = Spec.parse("made.py:net")
    assert spec.build_module() is spec.target
    assert isinstance(spec.target, torch.nn.Linear)


ERRORS = {
    "torch.nn.Linear": f"'torch.nn.Linear' does not name a Python object; write {FORM}",
    "torch.nn:Linear(": f"'torch.nn:Linear(' is not valid: '(' was never closed; write {FORM}",
    "torch.nn:Linear(d)": (
        "the arguments in 'torch.nn:Linear(d)' must be literals: numbers, strings in quotes, "
        "lists, True …"
    ),
    "no_such.thing:Net": (
        "there is no module 'no_such' for 'no_such.thing:Net', neither installed nor in the "
        "current folder {here}"
    ),
    "torch.none:Net": (
        "there is no module 'torch.none' for 'torch.none:Net', neither installed nor in the "
        "current folder {here}"
    ),
    "gone.py:Net": "there is no file 'gone.py' for 'gone.py:Net'",
    "train.py:Nett": "'train' has no 'Nett' for 'train.py:Nett'; did you mean 'Net'?",
    "broken.py:Net": "running 'broken.py' failed: ZeroDivisionError: division by zero",
    "broken:Net": "importing 'broken' failed: ZeroDivisionError: division by zero",
    "needy:Net": "importing 'needy' failed: No module named 'not_installed'",
}


@pytest.mark.parametrize("text", ERRORS)
def test_errors_say_what_is_wrong(here: Path, text: str) -> None:
    Path("broken.py").write_text("1 / 0\n")
    Path("needy.py").write_text("import not_installed\n")
    with pytest.raises(SpecError) as caught:
        Spec.parse(text)
    assert str(caught.value) == ERRORS[text].replace("{here}", str(here))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.py:Picky",
            "'train.py:Picky' cannot be called like this: missing a required argument: 'width'; "
            "its signature is Picky(*, width)",
        ),
        (
            "train.py:Net(depth=3)",
            "'train.py:Net(depth=3)' cannot be called like this: got an unexpected keyword "
            "argument 'depth'; its signature is Net(width=4, lr=0.1)",
        ),
        ("train.py:NUMBER(1)", "'train.py:NUMBER(1)' cannot be called: it is a int"),
        ("train.py:batch", "'train.py:batch' gives a list, not a torch.nn.Module"),
    ],
)
def test_building_errors_say_what_is_wrong(here: Path, text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        Spec.parse(text).build_module()
    assert str(caught.value) == message
