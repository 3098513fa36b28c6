"""Python objects named on the command line: ``package.module:name`` or ``file.py:name(args)``."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

FORM = "package.module:name, path/to/file.py:name, or either with arguments: module:Net(width=32)"


class SpecError(ValueError):
    """A name on the command line does not lead to what it should; the message says why."""


@dataclass(frozen=True)
class Spec:
    """An object named on the command line, with the arguments that it is called with."""

    text: str
    """As the user wrote it."""
    target: Any
    args: tuple[Any, ...] | None = None
    """``None``: the text has no parentheses."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    attributes: tuple[str, ...] = ()
    """What is taken of the result: ``("net",)`` in ``module:Classifier().net``."""

    @classmethod
    def parse(cls, text: str, *, default_module: str | None = None) -> Spec:
        """Import what ``text`` names.

        Args:
            text: see :data:`FORM`.
            default_module: searched for names without a module.

        Raises:
            SpecError: the text is malformed, or leads nowhere.
        """
        location, colon, expression = _split(text)
        if not colon and default_module is None:
            raise SpecError(f"{text!r} does not name a Python object; write {FORM}")
        call = _parse_call(expression if colon else text, text)
        module = _import(location if colon else str(default_module), text)
        target = _attribute(module, call.name.split("."), text)
        return cls(text, target, call.args, call.kwargs, call.attributes)

    def build(self, **defaults: Any) -> Any:
        """Call the object with the arguments in the text, or return it where it is no factory.

        Args:
            defaults: further keyword arguments, for those that the text does not give and that the
                object takes.

        Raises:
            SpecError: it cannot be called so.
        """
        if self.args is None and not _is_factory(self.target):
            return self.target
        if not callable(self.target):
            raise SpecError(f"{self.text!r} cannot be called: it is a {type(self.target).__name__}")
        args = self.args or ()
        taken = _accepted(self.target, len(args), defaults) | dict(self.kwargs)
        try:
            inspect.signature(self.target).bind(*args, **taken)
        except TypeError as error:
            raise SpecError(
                f"{self.text!r} cannot be called like this: {error}; its signature is "
                f"{_signature(self.target)}"
            ) from error
        except ValueError:  # a builtin without a signature: let the call tell
            pass
        return _attribute(self.target(*args, **taken), self.attributes, self.text)

    def build_module(self, **defaults: Any) -> nn.Module:
        """Build, and insist on a ``torch.nn.Module``.

        Raises:
            SpecError: it is something else.
        """
        module = self.build(**defaults)
        if not isinstance(module, nn.Module):
            raise SpecError(f"{self.text!r} gives a {type(module).__name__}, not a torch.nn.Module")
        return module


def _split(text: str) -> tuple[str, str, str]:
    """Split at the colon before the name; a drive letter or an argument may hold others."""
    head, parenthesis, tail = text.partition("(")
    location, colon, name = head.rpartition(":")
    return location, colon, name + parenthesis + tail


class _Call(NamedTuple):
    name: str
    args: tuple[Any, ...] | None
    kwargs: dict[str, Any]
    attributes: tuple[str, ...]


def _parse_call(expression: str, text: str) -> _Call:
    try:
        node = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise SpecError(f"{text!r} is not valid: {error.msg}; write {FORM}") from error
    whole = node
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.insert(0, node.attr)
        node = node.value
    if not isinstance(node, ast.Call):
        return _Call(ast.unparse(whole), None, {}, ())
    try:
        args = tuple(ast.literal_eval(x) for x in node.args)
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in node.keywords}
    except ValueError as error:
        raise SpecError(
            f"the arguments in {text!r} must be literals: numbers, strings in quotes, lists, True …"
        ) from error
    return _Call(ast.unparse(node.func), args, kwargs, tuple(attributes))


def _import(location: str, text: str) -> ModuleType:
    if location.endswith(".py"):
        return _import_file(Path(location), text)
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # a console script does not have it there
    try:
        return importlib.import_module(location)
    except ModuleNotFoundError as error:
        missing = str(error.name)
        if location == missing or location.startswith(f"{missing}."):
            raise SpecError(
                f"there is no module {missing!r} for {text!r}, neither installed nor in the "
                f"current folder {Path.cwd()}"
            ) from error
        raise SpecError(f"importing {location!r} failed: {error}") from error
    except (Exception, SystemExit) as error:
        raise SpecError(f"importing {location!r} failed: {_one_line(error)}") from error


def _import_file(path: Path, text: str) -> ModuleType:
    if not path.is_file():
        raise SpecError(f"there is no file {str(path)!r} for {text!r}")
    name = path.stem
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    shadowed = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses and pickle look their module up there
    if str(path.parent.absolute()) not in sys.path:
        sys.path.insert(0, str(path.parent.absolute()))  # as `python file.py` does
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        if shadowed is None:
            del sys.modules[name]
        else:
            sys.modules[name] = shadowed
        raise SpecError(f"running {str(path)!r} failed: {_one_line(error)}") from error
    return module


def _attribute(found: Any, names: Sequence[str], text: str) -> Any:
    for name in names:
        if not hasattr(found, name):
            where = getattr(found, "__name__", type(found).__name__)
            close = difflib.get_close_matches(name, dir(found), n=3)
            hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
            raise SpecError(f"{where!r} has no {name!r} for {text!r}{hint}")
        found = getattr(found, name)
    return found


def _is_factory(target: Any) -> bool:
    return callable(target) and not isinstance(target, nn.Module)


def _accepted(target: Callable[..., Any], given: int, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those values that ``target`` takes as keyword arguments after ``given`` others."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:
        return {}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(values)
    keywords = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    names = {p.name for p in list(parameters)[given:] if p.kind in keywords}
    return {k: v for k, v in values.items() if k in names}


def _signature(target: Callable[..., Any]) -> str:
    return f"{getattr(target, '__name__', target)}{inspect.signature(target)}"


def _one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return (
            f"it ends the program (SystemExit: {error}); put what it runs as a script below "
            "`if __name__ == '__main__':`"
        )
    return " ".join(f"{type(error).__name__}: {error}".split())
