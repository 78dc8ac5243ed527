"""Speed of each sampler beside another checkout, such as one of an earlier commit.

    git worktree add ../earlier 53d37bc
    python benchmarks/two_checkouts.py ../earlier runs/vp_digits --devices 2

Two processes load the same run, one with each checkout's package, and draw the same number of
images in turn. Both must be able to read the run, so it is best trained by the older one. Printed
for each sampler: evaluations of the network, the mean of all pixels in both, images/s here, and
the speed here over that of the other checkout, as median and range over the rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SAMPLERS: dict[str, dict[str, Any]] = {
    "UniPC": {"method": "unipc", "num_steps": 30},
    "DPM-Solver++": {"method": "dpmpp", "num_steps": 30, "eta": 0.0},
    "SDE-DPM-Solver++": {"method": "dpmpp", "num_steps": 30, "eta": 1.0},
    "DDIM": {"method": "ddim", "num_steps": 30, "eta": 0.0},
    "Heun": {"method": "heun", "num_steps": 30},
    "probability flow, a step size each": {"method": "ode"},
    "probability flow, one step size": {"method": "ode", "step_control": "batch"},
    "Euler-Maruyama": {"method": "pc", "num_steps": 30},
    "ancestral": {"method": "pc", "predictor": "ancestral", "num_steps": 30},
    "reverse diffusion + Langevin": {
        "method": "pc",
        "predictor": "reverse_diffusion",
        "corrector": "langevin",
        "num_steps": 20,
    },
    "annealed Langevin": {"method": "ald", "num_steps": 30},
}


class Drawing:
    """A process that draws with the package of one checkout."""

    def __init__(self, checkout: Path, args: argparse.Namespace) -> None:
        environment = {**os.environ}
        if args.devices:
            environment["JAX_NUM_CPU_DEVICES"] = str(args.devices)
        # Not as a file, whose folder would come first in the path: the checkout does.
        command = [sys.executable, "-c", Path(__file__).read_text(), args.workdir, str(checkout)]
        command += ["--num", str(args.num), "--answer"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=checkout
        )

    def __call__(self, name: str) -> tuple[float, float, float]:
        """Seconds of one batch, its pixels' mean, and evaluations."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        if not (line := self.process.stdout.readline()):
            sys.exit(2)  # the process has said why
        seconds, mean, nfe = json.loads(line)
        return seconds, mean, nfe


def answer(workdir: str, checkout: str, num: int) -> None:
    """Draw with each sampler that is named on standard input; its first draw does not count."""
    import jax
    import numpy as np

    import score_sde
    from score_sde import workdirs

    if not Path(score_sde.__file__).is_relative_to(checkout):
        sys.exit(f"error: {checkout} has no package score_sde")
    runs = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in runs:
            config = workdirs.load(Path(workdir))
            with config.unlocked():
                config.sampling.update({**SAMPLERS[name], "batch_size": num})
            runs[name] = score_sde.load(workdir, config)
            runs[name].sample(jax.random.key(0), num)
        begun = time.perf_counter()
        drawn = runs[name].sample(jax.random.key(0), num)
        seconds = time.perf_counter() - begun
        mean, nfe = float(np.mean(drawn.images, dtype=float)), float(np.mean(drawn.nfe))
        print(json.dumps([seconds, mean, nfe]), flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", help="folder of the other checkout")
    parser.add_argument("workdir", help="a run that both can read")
    parser.add_argument("--num", type=int, default=128, help="images, in one batch")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--devices", type=int, help="CPU devices; commands take one for each core")
    parser.add_argument("--sampler", choices=SAMPLERS, action="append", help="by default all")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.answer:
        return answer(args.workdir, args.checkout, args.num)
    args.workdir = str(Path(args.workdir).resolve())
    here = Path(__file__).resolve().parent.parent
    both = [Drawing(checkout, args) for checkout in (Path(args.checkout).resolve(), here)]
    print("| sampler | NFE | mean, there | here | images/s | speed |\n|---|---|---|---|---|---|")
    for name in args.sampler or SAMPLERS:
        first = [drawing(name) for drawing in both]
        rounds = [
            [drawing(name)[0] for drawing in both[:: 1 if i % 2 else -1]][:: 1 if i % 2 else -1]
            for i in range(args.rounds)
        ]
        ratios = [there / own for there, own in rounds]
        cells = [
            " and ".join(sorted({f"{nfe:.0f}" for _, _, nfe in first})),
            *(f"{mean:.4f}" for _, mean, _ in first),
            f"{args.num / statistics.median(own for _, own in rounds):.1f}",
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
        ]
        print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
