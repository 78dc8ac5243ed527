"""What learned reverse variances are worth where a chain is sampled with few of its levels.

    python main.py --config configs/iddpm_digits.py --mode train
    python benchmarks/respaced.py runs/iddpm_digits

Ancestral sampling of improved DDPM (Nichol and Dhariwal 2021, section 4) with K of the chain's N
levels, evenly spread, by the learned variances and by DDPM's two fixed ones. Writes
`respaced_digits.csv` and `respaced_digits.png` beside this file, and prints a Markdown table.
Lines that the CSV has are not measured again: delete it for another run. digits_judge.py explains
the columns; one row is the held-out real digits.
"""

import argparse
import time
from pathlib import Path

import jax
import lines
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
REAL = "held-out real digits"
SHOWN = ("near", "covered", "confidence")
Row = dict[str, str]


def row(variance: str, steps: int, nfe: float, verdict: Verdict, seconds: float) -> Row:
    """A line of the table."""
    numbers = (nfe, *verdict, seconds)
    values = (variance, f"{steps or ''}", *(f"{number:.4g}" for number in numbers))
    return dict(zip(COLUMNS, values, strict=True))


def measure(path: Path, run: Run, number: int, steps: list[int]) -> None:
    """Append the lines that the CSV lacks, each as soon as it is known."""
    there = {(line["variance"], line["steps"]) for line in lines.read(path)}
    judge = Judge()
    for variance, predictor in PREDICTORS.items():
        for count in steps:
            if (variance, f"{count}") in there:
                continue
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
            lines.append(path, row(variance, count, drawn.nfe.mean(), verdict, seconds))
    if (REAL, "") not in there:
        lines.append(path, row(REAL, 0, 0, judge.verdict(data.load("digits", "test", "").x), 0))


def picture(path: Path, table: list[Row]) -> None:
    """A panel for each of ``SHOWN`` against the number of steps; dashed: held-out real digits."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    [real] = [line for line in table if line["variance"] == REAL]
    figure, panels = pyplot.subplots(1, len(SHOWN), figsize=(11.0, 3.4), layout="constrained")
    for panel, name in zip(panels, SHOWN, strict=True):
        for variance, style in zip(PREDICTORS, ("o-", "s--", "^:"), strict=True):
            of = [line for line in table if line["variance"] == variance]
            points = sorted((float(line["steps"]), float(line[name])) for line in of)
            steps, values = zip(*points, strict=True)
            panel.semilogx(steps, values, style, label=f"{variance} variances")
        panel.axhline(float(real[name]), color="black", linestyle="--", linewidth=1, label=REAL)
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
    parser.add_argument("--output", default=Path(__file__).parent, type=lines.folder)
    chosen = parser.parse_args()
    start(chosen.number)
    path = chosen.output / "respaced_digits.csv"
    measure(path, score_sde.load(chosen.workdir), chosen.number, chosen.steps)
    table = lines.read(path)
    picture(path.with_suffix(".png"), table)
    print(f"\n{lines.markdown(table)}")


if __name__ == "__main__":
    main()
