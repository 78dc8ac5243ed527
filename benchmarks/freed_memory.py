"""Speed of sampling with and without kept memory (Linux, CPUs).

    python benchmarks/freed_memory.py runs/vp_digits

Two processes load the run and draw the same images in turn: one that gives freed memory back to the
system, as glibc does by default, and one that keeps it (`score_sde.memory`). Printed for each
sampler: images/s, pages mapped anew (minor page faults) for each image, and the speed of the second
over that of the first, as median and range over the rounds.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from score_sde.memory import SET_BY_USERS

SAMPLERS: dict[str, dict[str, Any]] = {
    "ddim": {"sampling.method": "ddim", "sampling.num_steps": 30},
    "reverse diffusion + Langevin": {
        "sampling.method": "pc",
        "sampling.predictor": "reverse_diffusion",
        "sampling.corrector": "langevin",
        "sampling.num_steps": 20,
    },
    "probability flow": {"sampling.method": "ode"},
}


class Drawing:
    """A process that draws when it is asked to."""

    def __init__(self, workdir: str, num: int, keep: bool) -> None:
        environment = {k: v for k, v in os.environ.items() if k not in SET_BY_USERS}
        if not keep:
            environment["GLIBC_TUNABLES"] = ""  # an empty value is enough: nothing is changed
        command = [sys.executable, __file__, workdir, "--num", f"{num}", "--answer"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )

    def __call__(self, name: str) -> tuple[float, int]:
        """Seconds and page faults of one batch."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            sys.exit(2)  # the process has said why
        seconds, faults = json.loads(line)
        return seconds, faults


def answer(workdir: str, num: int) -> None:
    """Draw with each sampler that is named on standard input; its first draw does not count."""
    import jax

    import score_sde

    try:
        loaded, runs = score_sde.load(workdir), {}
    except score_sde.UserError as error:
        sys.exit(f"error: {error}")
    for line in sys.stdin:
        name = line.strip()
        if name not in runs:
            runs[name] = loaded.changed({"sampling.batch_size": num, **SAMPLERS[name]})
            runs[name].sample(jax.random.key(0), num)
        faults, begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
        runs[name].sample(jax.random.key(0), num)
        seconds = time.perf_counter() - begun
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        print(json.dumps([seconds, faults]), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workdir")
    parser.add_argument("--num", type=int, default=128, help="images, in one batch")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        return answer(args.workdir, args.num)
    both = [Drawing(args.workdir, args.num, keep) for keep in (False, True)]
    print("| sampler | images/s, given back | kept | pages, given back | kept | speed |")
    print("|---|---|---|---|---|---|")
    for name in SAMPLERS:
        rounds = [
            [drawing(name) for drawing in both[:: 1 if i % 2 else -1]][:: 1 if i % 2 else -1]
            for i in range(args.rounds)
        ]
        ratios = [given_back[0] / kept[0] for given_back, kept in rounds]
        speeds = (args.num / statistics.median(r[i][0] for r in rounds) for i in (0, 1))
        pages = (statistics.median(r[i][1] for r in rounds) / args.num for i in (0, 1))
        cells = [*(f"{each:.1f}" for each in speeds), *(f"{each:.0f}" for each in pages)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        cells.append(f"{statistics.median(ratios):.2f} ({spread})")
        print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
