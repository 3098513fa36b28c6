"""``hessrank sweep``: the numbers of ``hessian_rank`` and ``rank_bound`` over a family."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from lightning_hessrank import rank_bound
from lightning_hessrank.cli.sweep import parse_vary
from lightning_hessrank.dashboard.figures.growth import Growth, growth_figure, root_fit
from tests.oracles import closed_form, dense_hessian

NETS = """
import torch
from torch import nn

def mlp(width, depth=1, bias=False, kind="linear"):
    act = {"linear": nn.Identity, "tanh": nn.Tanh}[kind]
    sizes = [6, *[width] * depth, 3]
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b, bias=bias), act())]
    return nn.Sequential(*layers[:-1])

class Pair(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Linear(6, width)
    def forward(self, x):
        return self.a(x), x

class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.q, self.v = nn.Linear(4, width), nn.Linear(4, 2)
    def forward(self, x):
        q = torch.relu(self.q(x))  # with kinks: no theorem for analytic networks either
        return (torch.softmax(q @ q.transpose(1, 2), -1) @ self.v(x)).mean(1)

def nan(width):
    net = mlp(width)
    net[0].weight.data.fill_(float("nan"))
    return net

def cubed(outputs, targets):
    return (outputs - targets).abs().pow(3).mean()

def anything(**options):
    return mlp(options["width"])

class Lit(nn.Module):
    def __init__(self, width, depth=1):
        super().__init__()
        self.net = mlp(width, depth)

net = mlp(4)

class OwnError(Exception):
    pass

def failing():
    raise OwnError("of my own")

class Asserting(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a = nn.Linear(6, width)
    def forward(self, x):
        assert len(x) == 1, "one at a time"
        return self.a(x)

def batch():
    g = torch.Generator().manual_seed(3)
    return torch.randn(4, 6, generator=g), torch.randn(4, 3, generator=g)
"""


@pytest.fixture
def nets(here: Path) -> Path:
    (here / "nets.py").write_text(NETS)
    return here


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "sweep.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_ranks_are_those_of_the_closed_form_and_the_fit_is_least_squares(
    nets: Path, hessrank: Any
) -> None:
    result = hessrank("sweep", "nets.py:mlp", "-i", "6", "--vary", "width=3,5,9")
    assert result.exit_code == 0, result.stderr
    rows = table(nets)
    assert [row["width"] for row in rows] == ["3", "5", "9"]
    for row, width in zip(rows, (3, 5, 9), strict=True):
        expected = closed_form([6, width, 3], 6, 3)[2]
        assert (row["rank"], row["bound"]) == (str(expected), str(expected))
        assert int(row["parameters"]) == 9 * width
        assert (row["bound_kind"], row["bound_is_theorem"]) == ("closed-form", "True")
        assert row["method"] == "dense"
        assert float(row["gap"]) > 1e6
    p, r = ([float(row[name]) for row in rows] for name in ("parameters", "rank"))
    roots = torch.tensor([x**0.5 for x in p]).double()
    factor = float(torch.linalg.lstsq(roots[:, None], torch.tensor(r).double()[:, None]).solution)
    assert [float(row["root_fit"]) for row in rows] == pytest.approx(
        [factor * x**0.5 for x in p], abs=0.06
    )
    assert f"rank ≈ {factor:.3g} √p; rank ~ p^" in result.stdout
    assert (
        "rank: number of eigenvalues beyond p·eps·max|λ| (machine precision of float64), exact; "
        "loss mse" in result.stdout
    )
    for row, line in zip(rows, result.stdout.splitlines()[1:], strict=False):
        assert line.endswith("  a theorem")
        assert row["samples"] == line.split()[-3] == "12"
    with Image.open("sweep.png") as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")


def test_all_combinations_and_words(nets: Path, hessrank: Any) -> None:
    out = ("-o", "deep/er")
    vary = ("--vary", "width=3,4", "--vary", "kind=linear,tanh")
    result = hessrank("sweep", "nets.py:mlp(depth=2)", "-i", "6", *vary, "--seed", "7", *out)
    assert result.exit_code == 0, result.stderr
    rows = table(nets / "deep" / "er")
    assert [(row["width"], row["kind"]) for row in rows] == [
        ("3", "linear"),
        ("3", "tanh"),
        ("4", "linear"),
        ("4", "tanh"),
    ]
    assert [row["bound_is_theorem"] for row in rows] == ["True", "False"] * 2
    assert int(rows[3]["rank"]) > int(rows[3]["bound"])
    worth = ["a theorem", "a reference line"] * 2
    assert [x.split("  ")[-1] for x in result.stdout.splitlines()[1:5]] == worth
    assert result.stdout.splitlines()[0].split()[:3] == ["width", "kind", "parameters"]


def test_given_data_bound_the_rank(nets: Path, hessrank: Any) -> None:
    arguments = ("--data", "nets.py:batch", "--vary", "width=5")
    result = hessrank("sweep", "nets.py:mlp", *arguments)
    assert result.exit_code == 0, result.stderr
    (row,) = table(nets)
    assert row["rank"] == row["bound"] == str(closed_form([6, 5, 3], 4, 3)[2])


def test_cross_entropy_and_own_losses(nets: Path, hessrank: Any) -> None:
    common = ("sweep", "nets.py:mlp", "-i", "6", "--vary", "width=5", "--loss")
    assert hessrank(*common, "cross_entropy").exit_code == 0
    assert table(nets)[0]["rank"] == str(closed_form([6, 5, 3], 6, 2)[2])
    result = hessrank(*common, "nets.py:cubed")
    assert (result.exit_code, result.stderr) == (0, "")
    (row,) = table(nets)
    expected = str(closed_form([6, 5, 3], 6, 3)[2])
    assert (row["rank"], row["bound"], row["bound_is_theorem"]) == (expected, expected, "True")


def test_the_same_seed_gives_the_same_files_and_every_method_the_same_rank(
    nets: Path, hessrank: Any
) -> None:
    common = ("sweep", "nets.py:mlp", "-i", "6", "--vary", "width=12", "--method")
    contents, ranks = [], []
    for method in ("exact", "dense", "dense", "sketch"):
        result = hessrank(*common, method)
        assert result.exit_code == 0, result.stderr
        contents.append((nets / "sweep.csv").read_text())
        ranks.append(table(nets)[0]["rank"])
    assert contents[0] == contents[1] == contents[2]
    assert table(nets)[0]["method"] == "sketch"
    assert set(ranks) == {str(closed_form([6, 12, 3], 6, 3)[2])}


def test_the_weights_and_data_are_those_of_the_seed(nets: Path, hessrank: Any) -> None:
    """The rank of a tanh network by plain autograd, at weights and data drawn here."""
    result = hessrank(
        "sweep", "nets.py:mlp(kind='tanh')", "-i", "6", "--vary", "width=4", "--samples", "3"
    )
    assert result.exit_code == 0, result.stderr
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 3, bias=False))
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(3, n, generator=generator).double() for n in (6, 3))
    H = dense_hessian(net.double(), nn.functional.mse_loss, [(x, y)])
    assert table(nets)[0]["rank"] == str(int(torch.linalg.matrix_rank(H, hermitian=True)))
    assert table(nets)[0]["bound"] == str(rank_bound(net, x[:1], data=x).total)


def test_a_network_without_a_bound_is_measured_without(nets: Path, hessrank: Any) -> None:
    result = hessrank("sweep", "nets.py:Attention", "-i", "5,4", "--vary", "width=2,3")
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("Warning: no bound: ")
    assert [row["bound"] for row in table(nets)] == ["", ""]
    assert " -  dense" in result.stdout


MLP = "nets.py:mlp"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            (MLP, "-i", "6", "--vary", "width"),
            2,
            "Error: Invalid value for '--vary': 'width' does not vary a parameter; write its name "
            "and values, as width=8,16,32",
        ),
        (
            (MLP, "-i", "6", "--vary", "widht=2,4"),
            2,
            "Error: Invalid value for '--vary': 'nets.py:mlp' has no parameter 'widht'; it has "
            "width, depth, bias, kind",
        ),
        (
            ("nets.py:mlp(width=3)", "-i", "6", "--vary", "width=2,4"),
            2,
            "Error: Invalid value for '--vary': 'width' is given in MODEL too; give it once",
        ),
        (
            (MLP, "-i", "6", "--vary", "width=2", "--vary", "width=4"),
            2,
            "Error: Invalid value for '--vary': 'width' is given twice; give it once",
        ),
        (
            (MLP, "--vary", "width=2"),
            2,
            "Error: Invalid value for '--input': give either the shape of Gaussian samples, as "
            "--input 3,32,32, or --data",
        ),
        (
            (MLP, "--vary", "width=2", "--data", "nets.py:batch", "--samples", "5"),
            2,
            "Error: Invalid value for '--samples': it counts Gaussian samples; leave it out with "
            "--data",
        ),
        (
            (MLP, "--vary", "width=2", "--data", "nets.py:net"),
            2,
            "Error: Invalid value for '--data': ",
        ),
        (
            ("nets.py:net", "-i", "6", "--vary", "width=2"),
            2,
            "Error: Invalid value for 'MODEL': 'nets.py:net' is a module already, whose size "
            "cannot be varied; name the class or function that builds it",
        ),
        (
            (MLP, "-i", "6", "--vary", "depth=2"),
            2,
            "Error: Invalid value for 'MODEL': 'nets.py:mlp' cannot be called like this: missing a "
            "required argument: 'width'; ",
        ),
        (
            (MLP, "-i", "6", "--vary", "width=wide"),
            2,
            "Error: Invalid value for 'MODEL': building 'nets.py:mlp' failed: ",
        ),
        (
            (MLP, "-i", "7", "--vary", "width=2"),
            1,
            "Error: nets.py:mlp with width=2: RuntimeError: mat1 and mat2 shapes cannot be ",
        ),
        (
            (MLP, "--vary", "width=2", "--data", "nets.py:failing"),
            2,
            "Error: Invalid value for '--data': building 'nets.py:failing' failed: nets.py:48: "
            "OwnError: of my own",
        ),
        (
            ("nets.py:Lit(depth=2)", "-i", "6", "--vary", "width=2"),
            1,
            "Error: nets.py:Lit(depth=2) with width=2: Lit has no forward(); name the network "
            "inside it, as 'nets.py:Lit(depth=2).net'",
        ),
        (
            ("nets.py:Asserting", "-i", "6", "--vary", "width=2"),
            1,
            "Error: nets.py:Asserting with width=2: nets.py:55: AssertionError: one at a time",
        ),
        (
            ("nets.py:Pair", "-i", "6", "--vary", "width=2"),
            1,
            "Error: nets.py:Pair with width=2: it returns a tuple, not a tensor; pass --data and a "
            "--loss that takes it",
        ),
    ],
)
def test_errors_are_one_line(
    nets: Path, hessrank: Any, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = hessrank("sweep", *arguments)
    assert result.exit_code == code, result.output
    assert result.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in result.output


def test_a_loss_that_is_not_finite_is_said(nets: Path, hessrank: Any) -> None:
    result = hessrank("sweep", "nets.py:nan", "-i", "6", "--vary", "width=3")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: a loss or its Hessian was not finite"
    assert table(nets)[0]["rank"] == "nan"


def test_what_was_measured_before_an_error_is_kept(nets: Path, hessrank: Any) -> None:
    result = hessrank("sweep", MLP, "-i", "6", "--vary", "width=3,wide")
    assert result.exit_code == 2
    assert [row["width"] for row in table(nets)] == ["3"]


def test_a_folder_that_is_a_file_is_refused(nets: Path, hessrank: Any) -> None:
    result = hessrank("sweep", MLP, "-i", "6", "--vary", "width=3", "-o", "nets.py")
    assert result.exit_code == 2
    assert "Error: Invalid value for '--output' / '-o': " in result.stderr
    result = hessrank("sweep", MLP, "-i", "6", "--vary", "width=3", "-o", "nets.py/in")
    assert (result.exit_code, result.stderr.splitlines()[-1][:31]) == (
        1,
        "Error: cannot write to nets.py/",
    )


def test_the_network_inside_a_module_is_varied(nets: Path, hessrank: Any) -> None:
    arguments = ("nets.py:Lit(depth=1).net", "-i", "6", "--vary", "width=3,5")
    assert hessrank("sweep", *arguments).exit_code == 0
    assert [row["rank"] for row in table(nets)] == [
        str(closed_form([6, width, 3], 6, 3)[2]) for width in (3, 5)
    ]


def test_a_factory_of_any_keyword_is_varied(nets: Path, hessrank: Any) -> None:
    assert hessrank("sweep", "nets.py:anything", "-i", "6", "--vary", "width=3").exit_code == 0


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("n=8,16", (8, 16)),
        (" n = 0.5 ", (0.5,)),
        ("n=True,None", (True, None)),
        ("n=relu,tanh,3", ("relu", "tanh", 3)),
        ("n=(8, 8),(16, 4)", ((8, 8), (16, 4))),
        ("n='a,b',c", ("'a", "b'", "c")),  # quotes do not help among bare words
    ],
)
def test_values(text: str, values: tuple[Any, ...]) -> None:
    assert parse_vary(text) == ("n", values)


def test_root_fit() -> None:
    exact = root_fit([Growth(p, 3.0 * p**0.5) for p in (16, 100, 400)])
    assert (exact.factor, exact.exponent) == pytest.approx((3.0, 0.5))
    assert exact.at(25) == pytest.approx(15.0)
    assert root_fit([Growth(p, 2.0 * p) for p in (5, 50)]).exponent == pytest.approx(1.0)
    assert math.isnan(root_fit([Growth(9, 6)]).exponent)
    assert math.isnan(root_fit([Growth(9, 0), Growth(16, 8)]).exponent)
    with pytest.raises(ValueError, match="root_fit needs at least one network, got none"):
        root_fit([])


def test_the_picture_shows_ranks_bounds_and_names() -> None:
    family = [Growth(16, 8, 9, True, "2"), Growth(100, 20, 21, True, "5")]
    (axes,) = growth_figure(family, "title", "subtitle").axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert set(lines) == {"p", "2 √p", "bound (theorem)", "rank"}
    assert list(lines["rank"].get_xdata()) == [4.0, 10.0]
    assert list(lines["rank"].get_ydata()) == [8, 20]
    assert list(lines["bound (theorem)"].get_ydata()) == [9, 21]
    assert [text.get_text() for text in axes.texts] == ["2", "5"]
    (bare,) = growth_figure([Growth(16, 8)], "title", "subtitle").axes
    assert len(bare.get_lines()) == 3  # p, the fit, the rank
