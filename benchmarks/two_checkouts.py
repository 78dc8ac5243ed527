"""Speed of each sampler beside another checkout, such as one of an earlier commit.

    git worktree add ../earlier 53d37bc
    python benchmarks/two_checkouts.py ../earlier runs/vp_digits --devices 2

Two processes load the same run, each with the package of its checkout, and draw the same number of
images in turn. Both must be able to read the run, so train it with the older one. Settings that a
row does not name are the run's. Printed for each sampler: evaluations of the network, the mean of
all pixels there and here, images/s here, and the speed here over that of the other checkout, as
median and range over the rounds.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from in_turn import Process, rounds, spread

PLAIN = {"method": "pc", "predictor": "euler_maruyama", "corrector": "none", "num_steps": 30}
SAMPLERS: dict[str, dict[str, Any]] = {
    "UniPC": {"method": "unipc", "num_steps": 30},
    "DPM-Solver++": {"method": "dpmpp", "num_steps": 30, "eta": 0.0},
    "SDE-DPM-Solver++": {"method": "dpmpp", "num_steps": 30, "eta": 1.0},
    "DDIM": {"method": "ddim", "num_steps": 30, "eta": 0.0},
    "Heun": {"method": "heun", "num_steps": 30},
    "flow, a step size each": {"method": "ode", "step_control": "sample"},
    "flow, one step size": {"method": "ode", "step_control": "batch"},
    "Euler-Maruyama": PLAIN,
    "ancestral": {**PLAIN, "predictor": "ancestral"},
    "reverse diffusion + Langevin": {
        **PLAIN,
        "predictor": "reverse_diffusion",
        "corrector": "langevin",
        "num_steps": 20,
    },
    "annealed Langevin": {"method": "ald", "num_steps": 30},
}


def answer(checkout: str, workdir: str, num: int) -> None:
    """Draw with each sampler that is named on standard input; its first draw does not count."""
    import jax
    import numpy as np

    import score_sde
    from score_sde import config, workdirs

    if Path(score_sde.__file__).parent.parent != Path(checkout):
        sys.exit(f"error: {checkout}: another package is imported, {score_sde.__file__}")
    run, drawn_by = None, ""
    for line in sys.stdin:
        name = line.strip()
        try:
            if name != drawn_by:
                own = {f"sampling.{key}": value for key, value in SAMPLERS[name].items()}
                settings = workdirs.load(Path(workdir))
                settings = config.changed(settings, {**own, "sampling.batch_size": num})
                run, drawn_by = score_sde.load(workdir, settings), name
                run.sample(jax.random.key(0), num)
            begun = time.perf_counter()
            drawn = run.sample(jax.random.key(0), num)
        except score_sde.UserError as error:
            sys.exit(f"error: {checkout}: {name}: {error}")
        seconds = time.perf_counter() - begun
        mean, nfe = float(np.mean(drawn.images, dtype=float)), float(np.mean(drawn.nfe))
        print(json.dumps([seconds, mean, nfe]), flush=True)


def arguments() -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", help="folder of the other checkout")
    parser.add_argument("workdir", help="folder of a run of images")
    parser.add_argument("--num", type=int, default=128, help="images, in one batch")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument(
        "--devices", type=int, default=1, help="devices of the CPU; commands take one for each core"
    )
    parser.add_argument(
        "--sampler", metavar="NAME", action="append", help="a row; may be given again; default: all"
    )
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    for path in ("checkout", "workdir"):
        setattr(args, path, str(Path(getattr(args, path)).expanduser().resolve()))
    if not Path(args.checkout, "score_sde", "__init__.py").is_file():
        parser.error(f"{args.checkout} is no checkout: it has no score_sde/__init__.py")
    if min(args.num, args.rounds, args.devices) < 1:
        parser.error("--num, --rounds and --devices are numbers from 1 on")
    for name in args.sampler or ():
        if name not in SAMPLERS:
            parser.error(f"--sampler {name!r}: allowed are {'; '.join(SAMPLERS)}")
    return args


def main() -> None:
    """Measure and print."""
    args = arguments()
    if args.answer:
        return answer(args.checkout, args.workdir, args.num)
    own = str(Path(__file__).resolve().parent.parent)
    there, here = (
        Process(
            __file__, checkout, args.workdir, "--num", f"{args.num}", "--answer",
            environment={
                **os.environ, "PYTHONPATH": checkout, "JAX_NUM_CPU_DEVICES": f"{args.devices}"
            },
        )
        for checkout in (args.checkout, own)
    )  # fmt: skip
    for number, name in enumerate(args.sampler or SAMPLERS):
        found = rounds((there, here), name, args.rounds)
        if number == 0:
            print("| sampler | NFE | mean, there | here | images/s | speed |")
            print("|---|---|---|---|---|---|")
        first = found[0]
        cells = [
            " and ".join(dict.fromkeys(f"{nfe:.0f}" for _, _, nfe in first)),
            *(f"{mean:.4f}" for _, mean, _ in first),
            f"{args.num / statistics.median(ours[0] for _, ours in found):.1f}",
            spread([theirs[0] / ours[0] for theirs, ours in found]),
        ]
        print(f"| {' | '.join([name, *cells])} |", flush=True)


if __name__ == "__main__":
    main()
