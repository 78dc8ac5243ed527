"""Two processes that measure the same thing in turn, so that a slow minute meets both."""

import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any


class Process:
    """A Python script that answers each line on its standard input by a line of JSON."""

    def __init__(self, script: str, *arguments: str, environment: Mapping[str, str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=pipe,
            stdout=pipe,
            text=True,
            env=dict(environment),
        )

    def ask(self, question: str) -> Any:
        """The answer. Where the process has ended, it has said why, and so ends this one."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            print(question, file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            sys.exit(2)
        return json.loads(line)


def rounds(both: tuple[Process, Process], question: str, number: int) -> list[tuple[Any, Any]]:
    """The answers of both in each round. Who begins changes from round to round."""
    answers = []
    for i in range(number):
        if i % 2:
            first = both[0].ask(question)
            answers.append((first, both[1].ask(question)))
        else:
            second = both[1].ask(question)
            answers.append((both[0].ask(question), second))
    return answers


def spread(ratios: Sequence[float]) -> str:
    """Median and range."""
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
