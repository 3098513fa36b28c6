"""The house: imports run downward only, as CONTRIBUTING.md's map has it, and nowhere in circles.

All imports count: those inside functions, those for type checkers, those of the files' own folder.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "lightning_hessrank"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))
#: A row of CONTRIBUTING.md's table: rooms, what they know, what they import; from the ground up.
ROW = re.compile(r"^\| *(`[^|]*?) *\| *([^|]*?) *\| *([^|]*?) *\|$", re.M)
#: What is no room: the doorplate (public names), and the way in of ``python -m``.
OUTSIDE = {"__init__", "__main__"}

Key = TypeVar("Key", bound=Hashable)


def module_name(path: Path) -> str:
    """Dotted name of a file of the package; a folder's ``__init__`` has the folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


MODULES = {module_name(path) for path in FILES}


def imported(source: str, modules: Iterable[str]) -> set[str]:
    """Modules of the package that a source names in any import statement."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                below = f"{node.module}.{alias.name}"
                found.add(below if below in modules else str(node.module))
    return {f"{PACKAGE}.__init__" if x == PACKAGE else x for x in found} & set(modules)


def circles(graph: Mapping[Key, set[Key]]) -> set[frozenset[Key]]:
    """Sets of nodes that can all reach each other, of more than one or with an edge to itself."""
    reach = {node: set(edges) for node, edges in graph.items()}
    for middle, beyond in reach.items():  # Warshall
        for edges in reach.values():
            if middle in edges:
                edges.update(beyond)
    found = {frozenset(x for x in edges if node in reach[x]) for node, edges in reach.items()}
    return found - {frozenset()}


def room(module: str) -> str:
    """The folder, or the file that stands alone, which a module belongs to."""
    return module.split(".")[1]


IMPORTS = {module_name(path): imported(path.read_text("utf-8"), MODULES) for path in FILES}
ROOMS: dict[str, set[str]] = {}
for name, targets in IMPORTS.items():
    if room(name) not in OUTSIDE:
        ROOMS.setdefault(room(name), set()).update(
            {room(x) for x in targets} - {room(name)} - OUTSIDE
        )


def the_map() -> dict[str, set[str]]:
    """Room by room, from the ground up, what it imports according to CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    rows = ROW.findall(text.split("## The house")[1].split("\n## ")[0])
    return {
        name: set(re.findall(r"`(\w+)/?`", imports))
        for names, _, imports in rows
        for name in re.findall(r"`(\w+)(?:/|\.py)?`", names)
    }


def test_no_circle_between_files() -> None:
    assert circles(IMPORTS) == set()


def test_no_circle_between_rooms() -> None:
    assert circles(ROOMS) == set()


def test_the_map_names_every_room() -> None:
    assert set(the_map()) == set(ROOMS)


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_room_imports_what_the_map_says(name: str) -> None:
    assert ROOMS[name] == the_map()[name]


def test_the_map_runs_downward_only() -> None:
    seen: set[str] = set()
    for name, imports in the_map().items():
        assert imports <= seen, f"{name} stands above what it imports"
        seen.add(name)


def test_every_kind_of_import_is_seen() -> None:
    source = """
import a.b
from typing import TYPE_CHECKING
from a import c
from a.d import name
if TYPE_CHECKING:
    from a.e import Other
def function():
    def inner():
        from a import f
"""
    modules = {"a.b", "a.c", "a.d", "a.e", "a.f", "a.g"}
    assert imported(source, modules) == {"a.b", "a.c", "a.d", "a.e", "a.f"}


def test_every_circle_is_seen() -> None:
    graph = {1: {2}, 2: {3}, 3: {2, 4}, 4: {5}, 5: set(), 6: {7}, 7: {8}, 8: {6}, 9: {9}}
    assert circles(graph) == {frozenset({2, 3}), frozenset({6, 7, 8}), frozenset({9})}
