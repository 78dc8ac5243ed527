"""One and two evaluations by a consistency model beside a few by the model that it was tuned from.

    python main.py --config configs/edm_digits.py --mode train
    python main.py --config configs/ect_digits.py --mode train \\
        --config.training.from=runs/edm_digits
    python benchmarks/few_evaluations.py runs/edm_digits runs/ect_digits

Easy Consistency Tuning (Geng et al. 2024) with 1 and 2 evaluations, its teacher by UniPC with 5, 10
and 15 and by its own sampler, and held-out real images. Writes `few_evaluations_DATA.csv` and
`.png` beside this file and prints a Markdown table. Lines that the CSV has are not measured again:
delete it for other runs. The first images of each method, the same noise for all, are
`few_evaluations_DATA.png` in the folder of --rows.

nfe                 evaluations of the network for each image
confidence, near …  of the drawn images, as in digits_judge.py
seconds             to draw them, without compilation
training            seconds of updates of that run, by its log and without compilation. The
                    teacher's come on top for the consistency model
"""

import argparse
import time
from pathlib import Path

import image_rows
import jax
import lines
import matplotlib
import numpy as np
from digits_judge import Judge, Verdict
from systems import trained

import score_sde
from score_sde import data
from score_sde.modes import start
from score_sde.run import Run

STUDENT, TEACHER = "ECT", "teacher"
OWN = "its own sampler"
REAL = "held-out real images"
# A last evaluation denoises what UniPC returns.
UNIPC = {f"UniPC, {nfe}": {"method": "unipc", "num_steps": nfe - 1} for nfe in (5, 10, 15)}
SAMPLERS: dict[str, dict[str, dict[str, object]]] = {
    STUDENT: {
        "1 evaluation": {"method": "consistency", "num_steps": 1},
        "2 evaluations": {"method": "consistency", "num_steps": 2, "rho": 20.0},
    },
    TEACHER: {**UNIPC, OWN: {}},
}
BATCH = 300  # images at a time, at most
SHOWN = 12  # images of each method
COLUMNS = ("model", "sampler", "nfe", *Verdict._fields, "seconds", "training")
PANELS = ("near", "covered", "confidence")
Row = dict[str, str]


def methods(runs: dict[str, Run]) -> dict[tuple[str, str], Run]:
    """By model and sampler, the run that draws so."""
    return {
        (model, sampler): runs[model].changed(
            {f"sampling.{key}": value for key, value in settings.items()}
            | {"sampling.batch_size": BATCH}
        )
        for model, samplers in SAMPLERS.items()
        for sampler, settings in samplers.items()
    }


def drawn(run: Run, number: int) -> tuple[np.ndarray, float, float]:
    """Images, evaluations of each, and the seconds that they took."""
    run.sample(jax.random.key(1), run.batch_size(number))  # compiles
    begin = time.perf_counter()
    found = run.sample(jax.random.key(0), number)
    return found.images, float(found.nfe.mean()), time.perf_counter() - begin


def row(model: str, sampler: str, verdict: Verdict, *other: float) -> Row:
    """A line of the table. Other: evaluations, seconds and those of training; none of real
    images."""
    nfe, *seconds = (f"{number:.4g}" for number in other) if other else ("", "", "")
    judged = (f"{number:.4g}" for number in verdict)
    return dict(zip(COLUMNS, (model, sampler, nfe, *judged, *seconds), strict=True))


def measure(path: Path, workdirs: dict[str, Path], runs: dict[str, Run], number: int) -> None:
    """Append the lines that the CSV lacks, each as soon as it is known."""
    there = {(line["model"], line["sampler"]) for line in lines.read(path)}
    any_run = runs[TEACHER]
    name, folder = any_run.info.name, any_run.config.data.dir
    judge = Judge(name, folder)
    training = {
        model: trained(workdirs[model], run.config.training.batch_size)
        for model, run in runs.items()
    }

    for (model, sampler), run in methods(runs).items():
        if (model, sampler) not in there:
            images, nfe, seconds = drawn(run, number)
            verdict = judge.verdict(images)
            lines.append(path, row(model, sampler, verdict, nfe, seconds, training[model]))
    if ("", REAL) not in there:
        held_out = np.asarray(data.load(name, "test", folder).x[:number])
        lines.append(path, row("", REAL, judge.verdict(held_out)))


def picture(path: Path, table: list[Row]) -> None:
    """A panel for each of ``PANELS`` against evaluations; dashed: held-out real images."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    curves = {
        STUDENT: ([line for line in table if line["model"] == STUDENT], "o-"),
        "teacher, UniPC": ([line for line in table if line["sampler"] in UNIPC], "s--"),
        f"teacher, {OWN}": ([line for line in table if line["sampler"] == OWN], "^"),
    }
    real = [line for line in table if line["sampler"] == REAL]
    figure, panels = pyplot.subplots(1, len(PANELS), figsize=(11.0, 3.4), layout="constrained")
    for panel, name in zip(panels, PANELS, strict=True):
        for label, (of, style) in curves.items():
            evaluations, values = ([float(line[key]) for line in of] for key in ("nfe", name))
            panel.semilogx(evaluations, values, style, label=label)
        for line in real:
            panel.axhline(float(line[name]), color="black", linestyle="--", linewidth=1, label=REAL)
        ticks = sorted({float(line["nfe"]) for line in table if line["nfe"]})
        panel.set(title=name, xlabel="evaluations")
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=80)


def sheet(path: Path, runs: dict[str, Run]) -> None:
    """The first images of each method, a row for each."""
    rows = {
        f"{model}, {sampler}": run.sample(jax.random.key(0), SHOWN).images / (run.info.levels - 1)
        for (model, sampler), run in methods(runs).items()
    }
    image_rows.save(path, rows)


def main() -> None:
    """Measure what the CSV lacks, and print the table."""
    form = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("teacher", type=Path, help="workdir of the run that was tuned")
    parser.add_argument("student", type=Path, help="workdir of the consistency model")
    parser.add_argument("--number", default=900, type=int, help="images of each method")
    parser.add_argument("--output", default=Path(__file__).parent, type=lines.folder)
    parser.add_argument("--rows", default=Path(__file__).parents[1] / "docs", type=lines.folder)
    parser.add_argument("--table", action="store_true", help="of the lines that are there")
    chosen = parser.parse_args()
    start(BATCH)
    workdirs = {STUDENT: chosen.student, TEACHER: chosen.teacher}
    runs = {model: score_sde.load(workdir) for model, workdir in workdirs.items()}
    name, student = runs[TEACHER].info.name, runs[STUDENT]
    if student.info.name != name or student.config.training.loss != "consistency":
        parser.error(
            f"{chosen.student}: data.name = {student.info.name}, training.loss = "
            f"{student.config.training.loss}; allowed are {name} and consistency"
        )
    path = chosen.output / f"few_evaluations_{name}.csv"
    if not chosen.table:
        measure(path, workdirs, runs, chosen.number)
        sheet(chosen.rows / f"few_evaluations_{name}.png", runs)
    table = lines.read(path)
    picture(path.with_suffix(".png"), table)
    print(f"\n{lines.markdown(table)}")


if __name__ == "__main__":
    main()
