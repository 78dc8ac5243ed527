"""Judge a digits run: 900 images of each sampler, as a Markdown table.

    python benchmarks/digits.py runs/vp_digits          every sampler as its settings are
    python benchmarks/digits.py runs/vp_digits --few    fast ones with few evaluations

The columns are explained in digits_judge.py; the last row is the 297 held-out real digits.
"""

import argparse
import time

import jax
from digits_judge import Judge, Verdict

import score_sde
from score_sde import data
from score_sde.config import changed, default
from score_sde.modes import start

IMAGES = 900
PC = {"method": "pc", "num_steps": 200}
SAMPLERS: dict[str, dict[str, object]] = {
    "the run's own": {},
    "UniPC": {"method": "unipc", "num_steps": 14},
    "DPM-Solver++ 2M": {"method": "dpmpp", "num_steps": 29, "order": 2},
    "DPM-Solver++ 3M": {"method": "dpmpp", "num_steps": 14, "order": 3},
    "DDIM": {"method": "ddim", "num_steps": 50},
    "Heun": {"method": "heun", "num_steps": 18},
    "Heun, churn 10": {"method": "heun", "num_steps": 25, "churn": 10.0},
    "probability flow": {"method": "ode", "rtol": 1e-4, "atol": 1e-4},
    "Euler–Maruyama": {**PC, "predictor": "euler_maruyama"},
    "ancestral": {**PC, "predictor": "ancestral"},
    "reverse diffusion": {**PC, "predictor": "reverse_diffusion"},
    "reverse diffusion + Langevin": {
        **PC,
        "predictor": "reverse_diffusion",
        "corrector": "langevin",
        "num_steps": 100,
    },
    "ancestral + ald": {**PC, "predictor": "ancestral", "corrector": "ald", "num_steps": 100},
    "annealed Langevin": {"method": "ald", "num_steps": 200},
}

FEW = (10, 15, 20, 30)
FEW_SAMPLERS: dict[str, tuple[int, dict[str, object]]] = {  # evaluations a step, settings
    "UniPC": (1, {"method": "unipc"}),
    "DPM-Solver++ 3M": (1, {"method": "dpmpp", "order": 3}),
    "DPM-Solver++ 2M": (1, {"method": "dpmpp", "order": 2}),
    "SDE-DPM-Solver++ 2M": (1, {"method": "dpmpp", "eta": 1.0}),
    "Heun": (2, {"method": "heun"}),
    "Heun, karras": (2, {"method": "heun", "grid": "karras"}),
    "Heun, log_snr": (2, {"method": "heun", "grid": "log_snr"}),
}


def few() -> dict[str, dict[str, object]]:
    """These with so many evaluations, the final denoising's among them."""
    return {
        f"{name}, {nfe}": {**settings, "num_steps": (nfe - 1) // per_step}
        for name, (per_step, settings) in FEW_SAMPLERS.items()
        for nfe in (*FEW, *(37,) * (per_step == 2))
    }


def row(name: str, nfe: float, seconds: float, verdict: Verdict) -> str:
    """One line of the table."""
    return (
        f"| {name} | {nfe:.0f} | {seconds:.0f} | {verdict.confidence:.3f} | {verdict.near:.3f} "
        f"| {verdict.covered:.3f} | {verdict.class_deviation:.1f} | {verdict.copies} |"
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workdir", help="of a run trained on the digits")
    parser.add_argument("--few", action="store_true", help="fast samplers with few evaluations")
    arguments = parser.parse_args()
    workdir = arguments.workdir
    start(IMAGES)
    judge = Judge()
    print("| sampler | NFE | s | confidence | near | covered | class deviation | copies |")
    print("|---|---|---|---|---|---|---|---|")
    saved = score_sde.load(workdir).config
    own = {f"sampling.{key}": value for key, value in default().sampling.items()}
    for name, settings in (few() if arguments.few else SAMPLERS).items():
        values = {f"sampling.{key}": value for key, value in settings.items()}
        config = changed(
            saved, {**(own if settings else {}), **values, "sampling.batch_size": IMAGES}
        )
        run = score_sde.load(workdir, config)
        began = time.perf_counter()
        drawn = run.sample(jax.random.key(0), IMAGES)
        seconds = time.perf_counter() - began
        print(row(name, drawn.nfe.mean(), seconds, judge.verdict(drawn.images)), flush=True)
    held_out = data.load("digits", "test", "").x
    print(row("held-out real digits", 0, 0, judge.verdict(held_out)))


if __name__ == "__main__":
    main()
