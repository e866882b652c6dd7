"""The process of the compiled ``floor.c``, which runs a round whenever it is asked to."""

import os
import shlex
import subprocess
import tempfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from rounds import Round


class Floor:
    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    @cached_property
    def _process(self) -> subprocess.Popen[str]:
        program = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "floor"
        compiler = shlex.split(os.environ.get("CC") or "cc")
        source = Path(__file__).with_name("floor.c")
        subprocess.run([*compiler, "-O2", "-o", program, source], check=True)
        return self._stack.enter_context(
            subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        )

    def contestant(self, mode: str, count: int) -> Round:
        """Return a contestant that makes the system calls of a mode (see ``floor.c``)."""

        def run(iterations: int) -> int:
            pipe_in, pipe_out = self._process.stdin, self._process.stdout
            assert pipe_in is not None and pipe_out is not None
            pipe_in.write(f"{mode} {count} {iterations}\n")
            answer = pipe_out.readline()
            if not answer:
                raise RuntimeError("the floor's program ended early")
            return int(answer)

        return run
