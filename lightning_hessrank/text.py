"""Tables of text, laid out for the console or as Markdown, and errors in a few words."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are to be read.

    Args:
        columns: headings; empty: none.
        rows: as many cells in each as there are columns.
        words: so many columns, from the left, hold words; the others numbers, which stand right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1

    def plain(self, *, ruled: bool = False, widths: Sequence[int] = ()) -> str:
        """Lay out in aligned columns, two spaces apart.

        Args:
            ruled: draw a line below the headings, and one below the rows.
            widths: least widths of the columns.
        """
        lines = [self.columns, *self.rows] if self.columns else list(self.rows)
        cells = [[len(cell) for cell in line] for line in lines] + (
            [list(widths)] if widths else []
        )
        needed = [max(column) for column in zip(*cells, strict=True)]

        def aligned(line: Sequence[str]) -> str:
            parts = (
                f"{cell:{'<' if i < self.words else '>'}{width}}"
                for i, (cell, width) in enumerate(zip(line, needed, strict=True))
            )
            return "  ".join(parts).rstrip()

        text = [aligned(line) for line in lines]
        if ruled:
            rule = "-" * (sum(needed) + 2 * (len(needed) - 1))
            text = [text[0], rule, *text[1:], rule]
        return "\n".join(text)

    def markdown(self) -> str:
        """Lay out as Markdown, which wants headings: empty ones will do."""
        columns = self.columns or [""] * len(self.rows[0])
        rule = ["---" if i < self.words else "---:" for i in range(len(columns))]
        lines = [columns, rule, *([x.replace("|", r"\|") for x in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def html(self) -> str:
        """Lay out as an HTML table, for notebooks."""

        def line(cells: Sequence[str], tag: str) -> str:
            sides = ("left" if i < self.words else "right" for i in range(len(cells)))
            parts = (
                f'<{tag} style="text-align:{side}">{html.escape(cell)}</{tag}>'
                for side, cell in zip(sides, cells, strict=True)
            )
            return f"<tr>{''.join(parts)}</tr>"

        head = f"<thead>{line(self.columns, 'th')}</thead>" if self.columns else ""
        body = "".join(line(row, "td") for row in self.rows)
        return f"<table>{head}<tbody>{body}</tbody></table>"


def in_short(error: BaseException) -> str:
    """Type and message of an error that others raised, of which 200 characters are enough."""
    message = textwrap.shorten(str(error), 200, placeholder=" …")
    return f"{type(error).__name__.lstrip('_')}: {message}".removesuffix(": ")
