"""README: every Python block runs, in order; commands, files and options that it names exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from lightning_hessrank.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
FENCE = re.compile(
    r"(?:<!-- run: (?P<marker>\w+) -->\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.S | re.M
)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    marker: str | None
    text: str
    line: int


BLOCKS = [
    Block(m["language"], m["marker"], m["text"], README[: m.start("text")].count("\n"))
    for m in FENCE.finditer(README)
]
SHELL = [block for block in BLOCKS if block.language in {"sh", "bash", "shell"}]


def commands() -> list[list[str]]:
    """All commands of the shell blocks, as words."""
    lines = [line for block in SHELL for line in block.text.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines for part in re.split("&&|;", line)]
    return [words for part in parts if (words := shlex.split(part, comments=True))]


def test_there_is_something_to_test() -> None:
    assert len([block for block in BLOCKS if block.language == "python"]) >= 3
    assert len(README.split("```")) % 2 == 1  # every fence is closed
    assert {block.language for block in BLOCKS} <= {
        "python",
        "sh",
        "text",
        "yaml",
        "bibtex",
        "diff",
    }


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*", "ignore:.*does not have many workers.*")
def test_python_blocks_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = TensorDataset(torch.randn(64, 16), torch.randn(64, 3))
    names: dict[str, Any] = {"val_loader": DataLoader(data, batch_size=32)}  # a reader has these
    for block in BLOCKS:
        if block.language == "python":
            source = "\n" * block.line + block.text  # so that errors name README's lines
            exec(compile(source, "README.md", "exec"), names)


def test_ci_finds_its_commands() -> None:
    """`.ci/run` runs the commands behind the markers; both sides must know each other."""
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    wanted = set(re.findall(r"readme_command (\w+)\)", script))
    marked = {block.marker for block in SHELL if block.marker}
    assert wanted == marked
    extract = script[script.index("readme_command() {") : script.index("\n}\n") + 3]
    for block in SHELL:
        if block.marker:
            shell = f"{extract}\nreadme_command {block.marker}"
            done = subprocess.run(
                ["bash", "-c", shell], capture_output=True, text=True, check=True, cwd=ROOT
            )
            assert done.stdout == block.text


@pytest.mark.parametrize("block", SHELL, ids=lambda block: f"line {block.line}")
def test_shell_blocks_are_valid(block: Block) -> None:
    subprocess.run(["bash", "-n", "-c", block.text], check=True)


def test_commands_name_files_and_options_that_exist() -> None:
    for words in commands():
        for word in words:
            if re.fullmatch(r"(examples|tests|\.ci)/[\w./-]+", word):
                assert (ROOT / word).exists(), word
        if words[0] == "python" and words[1].startswith("examples/"):
            text = (ROOT / words[1]).read_text("utf-8")
            for option in (w for w in words[2:] if w.startswith("--")):
                assert f'"{option}"' in text or words[1] == "examples/cli.py", (words, option)
        if words[0] == "hessrank":
            shown = CliRunner().invoke(app, [words[1], "--help"])
            assert shown.exit_code == 0, words
            for option in (w.split("=")[0] for w in words[2:] if w.startswith("-")):
                assert re.search(rf"{option}\b", shown.stdout), (words, option)


def test_links_and_pictures_exist() -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", README):
        if not re.match("https?:|#", target):
            assert (ROOT / target.split("#")[0]).exists(), target
