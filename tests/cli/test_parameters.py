"""Arguments that the commands share: shapes and losses as people write them."""

from __future__ import annotations

import pytest
import typer

from lightning_hessrank.cli.parameters import parse_shape, parse_spec


@pytest.mark.parametrize(
    ("text", "shape"),
    [("10", (10,)), ("3,32,32", (3, 32, 32)), ("3x8x8", (3, 8, 8)), (" 2, 4", (2, 4))],
)
def test_shapes(text: str, shape: tuple[int, ...]) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize("text", ["", "0", "-3", "3,,4", "3.5", "(3, 4)", "three"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter) as caught:
        parse_shape(text)
    assert caught.value.message == (
        f"{text!r} is not a shape; write positive whole numbers with commas, as 3,32,32"
    )


def test_specs_lead_to_objects_or_say_why_not() -> None:
    assert parse_spec("math:pi").build() == pytest.approx(3.14159, abs=1e-5)
    with pytest.raises(typer.BadParameter, match="there is no module 'no_such_module'"):
        parse_spec("no_such_module:Net")
