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
import sys
import time
from typing import Any

from in_turn import Process, rounds, spread

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
    unset = {key: value for key, value in os.environ.items() if key not in SET_BY_USERS}
    # An empty value is enough: nothing is changed.
    given_back, kept = (
        Process(__file__, args.workdir, "--num", f"{args.num}", "--answer", environment=environment)
        for environment in ({**unset, "GLIBC_TUNABLES": ""}, unset)
    )
    print("| sampler | images/s, given back | kept | pages, given back | kept | speed |")
    print("|---|---|---|---|---|---|")
    for name in SAMPLERS:
        found = rounds((given_back, kept), name, args.rounds)
        speeds = (args.num / statistics.median(r[i][0] for r in found) for i in (0, 1))
        pages = (statistics.median(r[i][1] for r in found) / args.num for i in (0, 1))
        cells = [*(f"{each:.1f}" for each in speeds), *(f"{each:.0f}" for each in pages)]
        cells.append(spread([slow[0] / fast[0] for slow, fast in found]))
        print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
