"""Options are declared once, and are the same in every command that has them."""

from __future__ import annotations

import importlib
from typing import Any, get_type_hints

import pytest
from typer.models import ArgumentInfo, OptionInfo

from lightning_hessrank.cli import options
from lightning_hessrank.cli.app import Commands


def declared(command: str) -> dict[str, Any]:
    """Name of an option, or metavar of an argument -> how it was declared."""
    module = importlib.import_module(f"lightning_hessrank.cli.{command}")
    hints = get_type_hints(getattr(module, command), include_extras=True)
    found = {}
    for parameter, hint in hints.items():
        for info in getattr(hint, "__metadata__", ()):
            if isinstance(info, ArgumentInfo):
                found[str(info.metavar)] = info
            elif isinstance(info, OptionInfo):
                long = [x for x in names_of(info) if x.startswith("--")]
                found[long[0] if long else f"--{parameter.replace('_', '-')}"] = info
    return found


def names_of(info: OptionInfo) -> set[str]:
    """Names given to an option; in ``Annotated`` the first stands where a default would."""
    return {x for x in (info.default, *(info.param_decls or ())) if isinstance(x, str)}


@pytest.mark.parametrize("command", list(Commands.SUMMARIES))
def test_what_has_one_name_is_read_in_one_way(command: str) -> None:
    mine = declared(command)
    for other in Commands.SUMMARIES:
        theirs = declared(other)
        for name in mine.keys() & theirs.keys():
            ours, others = mine[name], theirs[name]
            if name.startswith("--"):
                long = {name}  # given or made from the parameter's name
                assert names_of(ours) | long == names_of(others) | long, other
            if name != "--method":  # `sweep` offers exact ones only
                assert ours.parser == others.parser, (name, other)


def test_model_and_loss_are_the_shared_ones() -> None:
    (model,), (loss,) = options.Model.__metadata__, options.Loss.__metadata__  # type: ignore[attr-defined]
    for command in ("bound", "measure", "sweep"):
        assert declared(command)["MODEL"] is model
    for command in ("bound", "sweep"):
        assert declared(command)["--loss"] is loss
