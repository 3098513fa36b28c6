"""A terminal for programs that draw on it, and what then stands on its screen."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator

import pyte

COLUMNS, LINES = 110, 50


class Terminal:
    """Runs a Python program in a pseudo-terminal; ``screens`` are all that a user would have seen.

    Args:
        arguments: of the interpreter.
    """

    def __init__(self, *arguments: str) -> None:
        self.raw = ""
        self.screens: list[list[str]] = []
        screen = pyte.Screen(COLUMNS, LINES)
        stream = pyte.Stream(screen)
        for text in self._output([sys.executable, *arguments]):
            self.raw += text
            stream.feed(text)
            self.screens.append([line.rstrip() for line in screen.display if line.strip()])

    @property
    def final(self) -> list[str]:
        """Lines that remain."""
        return self.screens[-1]

    def _output(self, command: list[str]) -> Iterator[str]:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR", "CI"):
            environment.pop(name, None)
        process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        )
        os.close(theirs)
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while True:
            try:
                text = os.read(ours, 65536)
            except OSError:  # how Linux says that the other side is closed
                break
            if not text:
                break
            yield decode(text)
        os.close(ours)
        self.code = process.wait()
