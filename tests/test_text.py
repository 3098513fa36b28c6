"""The one table of text, and how results find what draws them."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_hessrank import rank_bound
from lightning_hessrank.results import figure_of
from lightning_hessrank.text import Table, in_short


def test_words_stand_left_and_numbers_right() -> None:
    table = Table(("layer", "rank"), [("a", "1,024"), ("features.0", "7")])
    assert table.plain().splitlines() == [
        "layer        rank",
        "a           1,024",
        "features.0      7",
    ]
    assert table.plain(ruled=True).splitlines() == [
        "layer        rank",
        "-----------------",
        "a           1,024",
        "features.0      7",
        "-----------------",
    ]
    assert table.markdown().splitlines() == [
        "| layer | rank |",
        "| --- | ---: |",
        "| a | 1,024 |",
        "| features.0 | 7 |",
    ]


def test_table_without_headings_or_rows() -> None:
    assert Table((), [("total", "33")]).plain(widths=(6, 4)) == "total     33"
    assert Table((), [("total", "33")]).markdown().splitlines() == [
        "|  |  |",
        "| --- | ---: |",
        "| total | 33 |",
    ]
    assert Table(("layer", "rank"), []).plain() == "layer  rank"


def test_a_bar_in_a_cell_does_not_end_it() -> None:
    assert r"| max \|λ\| |" in Table(("unit",), [("max |λ|",)]).markdown()


def test_results_draw_themselves_by_what_is_registered() -> None:
    bound = rank_bound(nn.Linear(3, 2), torch.zeros(1, 3))
    assert isinstance(bound.plot(), Figure)
    with pytest.raises(TypeError, match="there is no figure of a int"):
        figure_of(3)


def test_results_can_be_drawn_wherever_they_are_imported_and_nothing_is_loaded_for_it() -> None:
    program = (
        "import sys\n"
        "from lightning_hessrank.results import RankBound, RankEstimate, figure_of\n"
        "assert all(figure_of.dispatch(x) is not figure_of.dispatch(object)"
        " for x in (RankBound, RankEstimate))\n"
        "slow = {'matplotlib', 'tensorboard', 'pytorch_lightning', 'lightning', 'rich', 'typer'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_errors_of_others_are_told_in_short() -> None:
    assert in_short(KeyError()) == "KeyError"
    assert in_short(RuntimeError("one\n  line")) == "RuntimeError: one line"
    long = in_short(RuntimeError("many words " * 50))
    assert long.startswith("RuntimeError: many words many")
    assert long.endswith(" …")
    assert len(long) <= 220
