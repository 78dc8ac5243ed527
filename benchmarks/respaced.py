"""What learned reverse variances are worth where a chain is sampled with few of its levels.

    python main.py --config configs/iddpm_digits.py --mode train
    python benchmarks/respaced.py runs/iddpm_digits

Ancestral sampling of improved DDPM (Nichol and Dhariwal 2021, section 4) with K of the chain's N
levels, evenly spread, by the learned variances and by DDPM's two fixed ones. Writes
`respaced_digits.csv` and `respaced_digits.png` beside this file, and prints a Markdown table.
digits_judge.py explains the columns; the last row is the held-out real digits.
"""

import argparse
import csv
import time
from pathlib import Path

import jax
import matplotlib
from digits_judge import Judge, Verdict

import score_sde
from score_sde import data
from score_sde.modes import start
from score_sde.run import Run

PREDICTORS = {
    "learned": "ancestral_learned",
    "large": "ancestral_large",
    "small": "ancestral",
}
STEPS = (5, 10, 25, 50, 100, 1000)
COLUMNS = ("variance", "steps", "nfe", *Verdict._fields, "seconds")
SHOWN = ("near", "covered", "confidence")
Row = dict[str, str]


def row(variance: str, steps: int, nfe: float, verdict: Verdict, seconds: float) -> Row:
    """A line of the table."""
    numbers = (nfe, *verdict, seconds)
    values = (variance, f"{steps or ''}", *(f"{number:.4g}" for number in numbers))
    return dict(zip(COLUMNS, values, strict=True))


def measured(run: Run, judge: Judge, number: int, steps: list[int]) -> list[Row]:
    """The lines of the run, printed as they come."""
    found = []
    for variance, predictor in PREDICTORS.items():
        for count in steps:
            begin = time.perf_counter()
            settings = {
                "sampling.method": "pc",
                "sampling.predictor": predictor,
                "sampling.corrector": "none",
                "sampling.grid": "linspace",
                "sampling.num_steps": count,
                "sampling.batch_size": number,
            }
            drawn = run.changed(settings).sample(jax.random.key(0), number)
            seconds = time.perf_counter() - begin
            verdict = judge.verdict(drawn.images)
            found.append(row(variance, count, drawn.nfe.mean(), verdict, seconds))
            print(markdown(found[-1]), flush=True)
    return found


def markdown(line: Row) -> str:
    """A line of the table in Markdown."""
    return f"| {' | '.join(line[column] for column in COLUMNS)} |"


def picture(path: Path, lines: list[Row], real: Row) -> None:
    """A panel for each of ``SHOWN`` against the number of steps; dashed: held-out real digits."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    figure, panels = pyplot.subplots(1, len(SHOWN), figsize=(11.0, 3.4), layout="constrained")
    for panel, name in zip(panels, SHOWN, strict=True):
        for variance, style in zip(PREDICTORS, ("o-", "s--", "^:"), strict=True):
            of = [line for line in lines if line["variance"] == variance]
            steps, values = ([float(line[key]) for line in of] for key in ("steps", name))
            panel.semilogx(steps, values, style, label=f"{variance} variances")
        panel.axhline(float(real[name]), color="black", linestyle="--", linewidth=1)
        panel.set(title=name, xlabel="steps, of the chain's levels")
        panel.set_xticks(steps, [f"{count:g}" for count in steps])
        panel.minorticks_off()
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=80)


def main() -> None:
    """Measure, write, print."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("workdir", type=Path, help="of a run with learned variances on the digits")
    parser.add_argument("--number", default=900, type=int, help="images of each setting")
    parser.add_argument("--steps", default=list(STEPS), type=int, nargs="+", help="K")
    parser.add_argument("--output", default=Path(__file__).parent, type=Path)
    chosen = parser.parse_args()
    start(chosen.number)
    run, judge = score_sde.load(chosen.workdir), Judge()
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    lines = measured(run, judge, chosen.number, chosen.steps)
    real = row("held-out real digits", 0, 0, judge.verdict(data.load("digits", "test", "").x), 0)
    print(markdown(real))
    with (chosen.output / "respaced_digits.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows([*lines, real])
    picture(chosen.output / "respaced_digits.png", lines, real)


if __name__ == "__main__":
    main()
