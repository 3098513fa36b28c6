"""Interrupts ``hessrank measure`` at random moments: argument: how often. For `test_measure.py`.

Every round is a process of its own, forked from one that has PyTorch already.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import torch

from lightning_hessrank.cli import app, measure  # noqa: F401  (imported before the fork)

COMMAND = ["measure", "train:Net", "--checkpoints", "run"]
FOLDER = Path("run/hessrank")


def child() -> NoReturn:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        app(COMMAND)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except KeyboardInterrupt:
        os._exit(130)
    os._exit(99)


def once(delay: float | None) -> int:
    """Run the program, interrupted after a while; return its exit code."""
    process = os.fork()
    if process == 0:
        child()
    if delay is not None:
        time.sleep(delay)
        os.kill(process, signal.SIGINT)
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


def steps() -> list[int]:
    """What the folder holds, read as a user's next command would."""
    if not (FOLDER / "monitor.pt").exists():
        return []
    kept = torch.load(FOLDER / "monitor.pt", weights_only=True)
    found = [record["step"] for record in kept["monitor"]["history"]]
    assert [row["step"] for row in kept["rows"]] == found
    return found


def main(rounds: int) -> None:
    torch.set_num_threads(1)
    draw = random.Random(0)
    start = time.perf_counter()
    assert once(None) == 0
    whole = time.perf_counter() - start
    every = steps()
    shutil.rmtree(FOLDER)
    interrupted = 0
    for _ in range(rounds):
        before = steps()
        code = once(draw.uniform(0, whole))
        interrupted += code not in (0,)
        after = steps()
        assert after[: len(before)] == before, (before, after)
        if after == every:
            shutil.rmtree(FOLDER)
    assert once(None) == 0
    print(json.dumps({"interrupted": interrupted, "steps": steps(), "every": every}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
