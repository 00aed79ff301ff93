"""Ranks: processes that run a script of this folder, and begin with what is slow to import."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

HERE = Path(__file__).parent
SLOW = ["deepspeed", "trainers.pretrain", "trainers.retraining", "transformers.masking_utils"]


class Rank:
    """Forked from a server that has imported; told of as `subprocess.Popen` tells."""

    def __init__(
        self, script: str, arguments: Sequence[Path], environment: Mapping[str, str], log: Path
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(SLOW)
        given = (str(HERE / script), list(map(str, arguments)), dict(environment), log)
        self._process: ForkServerProcess = context.Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a rank", timeout)
        return self.returncode

    def kill(self) -> None:
        self._process.kill()


def fresh(
    script: str, arguments: Sequence[Path], environment: Mapping[str, str], log: Path
) -> "subprocess.Popen[bytes]":
    """A rank that imports everything itself, in its own environment."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    with log.open("w") as file:  # a pipe that nobody reads would fill up and stop its rank
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)


def _run(script: str, arguments: list[str], environment: dict[str, str], log: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the server ignores it
    os.environ.clear()
    os.environ.update(environment)
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = [script, *arguments]
    sys.path[:0] = environment["PYTHONPATH"].split(os.pathsep)
    runpy.run_path(script, run_name="__main__")
