"""Systems side by side, each trained for as long: bits/dim and samples, as table and picture.

    python -m benchmarks systems --minutes 5
    python -m benchmarks systems --minutes 5 --only vp,flow
    python -m benchmarks systems --minutes 15 --data fashion_mnist --data-dir FOLDER

Every number comes from a public command, which is printed. The same command goes on after an
interruption: a training from its last checkpoint, and systems that the table has are skipped.
Runs and results are in OUTPUT/DATA-MINUTESmin: `systems.csv`, `systems.md` and `systems.png`.

A system is a preset with overrides. Its steps/s are measured first, after compilation, and make its
number of updates. Where it begins with the weights of another training, both share the minutes.

steps, seconds      updates, and how long they took by the run's log, without compilation
bits/dim            of held-out images: by the probability flow (`ode`), exact up to solver and
                    probe; the variational `bound` in continuous time; and `vlb`, that of a chain,
                    of pixels as they are. None of consistency models, which have no score, and no
                    bound of paired noise
confidence, near, covered   of drawn images, as in digits_judge.py; near is a precision
outside             of drawn digits, the same file's second judge
"""

import argparse
import csv
import json
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from digits_judge import Judge, outside

from score_sde import data, presets
from score_sde.paths import whole
from score_sde.training.logs import logged


class Stage(NamedTuple):
    """A training.

    Attributes:
        preset: its name without the data's: "vp" is configs/vp_DATA.py.
        overrides: keys of the config and their values.
        share: of the system's minutes.
    """

    preset: str
    overrides: Mapping[str, object] = {}
    share: float = 1.0


class System(NamedTuple):
    """What is compared.

    Attributes:
        stages: its trainings. Each begins with the weights of the one before.
        samplers: settings of the section sampling.
        likelihoods: values of likelihood.method.
    """

    stages: Sequence[Stage]
    samplers: Mapping[str, Mapping[str, object]]
    likelihoods: Sequence[str] = ("ode", "bound")


SAMPLERS = {
    "adaptive flow": {"method": "ode", "rtol": 1e-4, "atol": 1e-4},
    "SDE": {"method": "dpmpp", "eta": 1.0, "num_steps": 30},
}
FLOW_SAMPLERS = {"adaptive flow": SAMPLERS["adaptive flow"]}
CHAIN_SAMPLERS = {
    **FLOW_SAMPLERS,
    "50 learned steps": {
        "method": "pc",
        "predictor": "ancestral_learned",
        "grid": "linspace",
        "num_steps": 50,
    },
}
FEW = {
    "1 evaluation": {"method": "consistency", "num_steps": 1},
    "2 evaluations": {"method": "consistency", "num_steps": 2, "rho": 20.0},
}
FLOW = {
    "sde.name": "flow",
    "model.parameterization": "flow",
    "model.condition": "log_sigma",  # log t; the log-SNR is infinite at T
    "model.fourier_scale": 0.06,  # half of the range of log-SNRs, so twice that of vp
    "training.loss": "flow",
}
# Paired noise makes a flow without a score, so it has no SDE: score_sde/pairing.py.
OT = {**FLOW, "training.pairing": "ot", "sampling.method": "unipc", "sampling.eta": 0.0}
# The log-SNR that the network reads is finite before T.
COSINE = {"sde.name": "cosine", "sde.t_max": 0.999}

# Zheng et al. 2023: training for the likelihood of the flow, and its second part.
LIKELIHOOD = {"training.loss": "likelihood", "training.times": "importance"}
SECOND_ORDER = {
    "training.loss": "second_order",
    "training.learning_rate": 6e-4,  # a tenth of the digits'
}

ADAM = {"training.optimizer": "adam"}
PLAIN = {"data.augment": 0.0}

SYSTEMS = {
    "vp": System([Stage("vp")], SAMPLERS),
    "adam": System([Stage("vp", ADAM)], SAMPLERS),
    "subvp": System([Stage("subvp")], SAMPLERS),
    "ve": System([Stage("ve")], SAMPLERS),
    "edm": System([Stage("edm")], SAMPLERS),
    "edm_plain": System([Stage("edm", PLAIN)], SAMPLERS),
    "edm_uncertainty": System([Stage("edm", {**PLAIN, "training.uncertainty": True})], SAMPLERS),
    "flow": System([Stage("vp", FLOW)], SAMPLERS),
    "flow_ot": System([Stage("vp", OT)], FLOW_SAMPLERS, ["ode"]),
    "flow_logit_normal": System(
        [Stage("vp", {**FLOW, "training.times": "logit_normal"})], SAMPLERS
    ),
    "cosine": System([Stage("vp", COSINE)], SAMPLERS),
    "cosine_velocity": System(
        [Stage("vp", {**COSINE, "training.loss": "paper", "training.weight": "velocity"})],
        SAMPLERS,
    ),
    "min_snr": System(
        [Stage("vp", {"training.loss": "paper", "training.weight": "min_snr"})], SAMPLERS
    ),
    "vdm": System([Stage("vdm")], SAMPLERS),
    "iddpm": System([Stage("iddpm")], CHAIN_SAMPLERS, ["vlb"]),
    "iddpm_vlb": System([Stage("iddpm", {"training.loss": "vlb"})], CHAIN_SAMPLERS, ["vlb"]),
    "likelihood": System([Stage("vp", LIKELIHOOD)], SAMPLERS),
    "i_dode": System([Stage("vp", LIKELIHOOD, 0.7), Stage("vp", SECOND_ORDER, 0.3)], SAMPLERS),
    "ect": System([Stage("edm", share=0.6), Stage("ect", share=0.4)], FEW, []),
}
# What all stages share: the presets of Fashion-MNIST differ in it.
SHARED: dict[str, Mapping[str, object]] = {
    "digits": {},
    "fashion_mnist": {
        "model.multipliers": (1, 2, 4),
        "training.optimizer": "muon",
        "training.warmup_steps": 50,
    },
}
# Images that are drawn and judged, and held-out ones whose bits/dim are computed; 0: all.
NUMBERS = {"digits": (900, 0), "fashion_mnist": (300, 100)}
REAL = "held-out real images"
METHODS = ("ode", "bound", "vlb")  # of likelihoods
MARKS = {"ode": "o", "bound": "|"}  # vlb is of other data, pixels as they are: in the table alone
FIELDS = (
    *("system", "steps", "seconds"),
    *("ode", "ode_error", "bound", "bound_error", "vlb", "vlb_error"),
    *("sampler", "nfe", "confidence", "near", "covered", "outside"),
)
TRIAL = {"training.num_steps": 60, "training.log_every": 10}
Row = dict[str, str]


def main_py(mode: str, *flags: str) -> None:
    """Print a command and run it. It handles signals itself, and keeps what it has done."""
    arguments = ["main.py", "--mode", mode, *flags]
    print(f"\n$ python {shlex.join(arguments)}", flush=True)
    process = subprocess.Popen([sys.executable, *arguments])
    # Ctrl-C reaches both processes, SIGTERM this one alone.
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: process.terminate()),
    }
    status = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if status:
        sys.exit(status)


def typed(values: Mapping[str, object], section: str = "") -> list[str]:
    """Settings as flags."""
    return [f"--config.{section}{key}={value}" for key, value in values.items()]


class Place(NamedTuple):
    """Where a comparison is made, and of what."""

    folder: Path
    data: str
    data_dir: str
    minutes: float

    def preset(self, stage: Stage) -> str:
        """The name of a stage's preset."""
        return f"{stage.preset}_{self.data}"

    def flags(self, stage: Stage) -> list[str]:
        """Of a stage's training, except its length."""
        where = {"data.dir": self.data_dir} if self.data_dir else {}
        quiet = {"training.sample_every": 0}
        config = f"configs/{self.preset(stage)}.py"
        settings = {**where, **SHARED[self.data], **stage.overrides, **quiet}
        return ["--config", config, *typed(settings)]

    def batch(self, stage: Stage) -> int:
        """Examples of an update."""
        return int(presets.load(self.preset(stage)).training.batch_size)


def steps(place: Place, name: str, stages: Sequence[Stage]) -> list[int]:
    """The updates of each training. They are measured once, so that it can go on."""
    file = place.folder / "steps.json"
    known: dict[str, list[int]] = json.loads(file.read_text()) if file.exists() else {}
    if name not in known:
        known[name] = []
        for stage in stages:
            with tempfile.TemporaryDirectory() as trial:
                main_py("train", *place.flags(stage), "--workdir", trial, *typed(TRIAL))
                lines = [line for _, line in logged(Path(trial))][1:]
            speed = statistics.median(line["images_per_second"] for line in lines)
            seconds = 60.0 * place.minutes * stage.share
            known[name].append(max(1, round(seconds * speed / place.batch(stage))))
        with whole(file) as opened:
            opened.write(json.dumps(known, indent=2).encode())
    return known[name]


def trained(workdir: Path, batch: int) -> float:
    """The seconds that the updates of a run took, by its log; batch: examples of an update."""
    seconds, last = 0.0, 0
    for _, line in logged(workdir):
        if "images_per_second" in line:
            images = (line["step"] - last) * batch
            seconds, last = seconds + images / line["images_per_second"], line["step"]
    return seconds


def train(place: Place, name: str, stages: Sequence[Stage]) -> tuple[Path, Row]:
    """Train a system; return its workdir and what the table says of the training."""
    numbers, seconds, workdir, source = steps(place, name, stages), 0.0, place.folder, []
    for index, (stage, number) in enumerate(zip(stages, numbers, strict=True), 1):
        workdir = place.folder / (name if index == len(stages) else f"{name}-{index}")
        flags = [*place.flags(stage), *typed({"training.num_steps": number}), *source]
        main_py("train", *flags, "--workdir", str(workdir))
        source = typed({"training.from": workdir})
        seconds += trained(workdir, place.batch(stage))
    return workdir, {"steps": " + ".join(map(str, numbers)), "seconds": f"{seconds:.0f}"}


def likelihoods(place: Place, workdir: Path, methods: Sequence[str]) -> Row:
    """Bits/dim of a run by these methods, with their standard errors over images."""
    found = {}
    for method in methods:
        flags = typed({"method": method, "num_images": NUMBERS[place.data][1]}, "likelihood.")
        output = workdir / method
        main_py("likelihood", "--workdir", str(workdir), "--output", str(output), *flags)
        summary = json.loads((output / "likelihood.json").read_text())
        found |= {
            method: f"{summary['bits_per_dim']:.4f}",
            f"{method}_error": f"{summary['standard_error']:.4f}",
        }
    return found


def judged(place: Place, judge: Judge, images: np.ndarray) -> Row:
    """What the judges say."""
    said = judge.verdict(images)._asdict()
    if place.data == "digits":
        said["outside"] = outside(images)
    return {field: f"{value:.3f}" for field, value in said.items() if field in FIELDS}


def samples(
    place: Place, workdir: Path, sampler: str, settings: Mapping[str, object], judge: Judge
) -> Row:
    """Draw by a sampler, and judge."""
    number, output = NUMBERS[place.data][0], workdir / sampler.replace(" ", "_")
    flags = typed({**settings, "num_samples": number, "batch_size": number}, "sampling.")
    main_py("sample", "--workdir", str(workdir), "--output", str(output), *flags)
    with np.load(output / "samples.npz") as file:
        images, nfe = file["images"], file["nfe"]
    return {"sampler": sampler, "nfe": f"{nfe.mean():.0f}", **judged(place, judge, images)}


def compare(place: Place, names: Sequence[str]) -> list[Row]:
    """The table's rows, those that its file lacks after the others."""
    file, rows = place.folder / "systems.csv", []
    if file.exists():
        with file.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
    judge = Judge(place.data, place.data_dir)
    for name in names:
        system = SYSTEMS[name]
        if any(row["system"] == name for row in rows):
            print(f"{name}: in {file}")
            continue
        workdir, said = train(place, name, system.stages)
        said = {"system": name, **said, **likelihoods(place, workdir, system.likelihoods)}
        rows += [
            {**said, **samples(place, workdir, sampler, settings, judge)}
            for sampler, settings in system.samplers.items()
        ]
        partial_file = file.with_suffix(".partial")
        with partial_file.open("w", newline="") as opened:
            writer = csv.DictWriter(opened, FIELDS, restval="")
            writer.writeheader()
            writer.writerows(rows)
        partial_file.replace(file)
    held_out = data.load(place.data, "test", place.data_dir).x
    return [*rows, {"system": REAL, **judged(place, judge, np.asarray(held_out[:1000]))}]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    head = [field for field in FIELDS if not field.endswith("_error")]
    titles = {method: f"bits/dim, {method}" for method in METHODS} | {"nfe": "NFE"}
    lines = [[titles.get(field, field) for field in head], ["---"] * len(head)]
    for row in rows:
        values = {field: row.get(field) or "–" for field in FIELDS}
        for method in METHODS:
            if row.get(method):
                values[method] += f" ± {row[f'{method}_error']}"
        lines.append([values[field] for field in head])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def picture(file: Path, rows: Sequence[Row]) -> None:
    """Bits/dim, precision and a judge's confidence in each system."""
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    *rows, real = rows
    names = list(dict.fromkeys(row["system"] for row in rows))
    figure, panels = pyplot.subplots(
        1, 3, figsize=(11.0, 1.4 + 0.35 * len(names)), sharey=True, layout="constrained"
    )
    for method, style in MARKS.items():
        if not (of := {row["system"]: row for row in rows if row.get(method)}):
            continue
        panels[0].errorbar(
            [float(row[method]) for row in of.values()],
            [names.index(name) for name in of],
            xerr=[float(row[f"{method}_error"]) for row in of.values()],
            fmt=style,
            label=method,
        )
    by_judge = "outside" if real.get("outside") else "confidence"
    for panel, field in zip(panels[1:], ("near", by_judge), strict=True):
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            of_sampler = [row for row in rows if row["sampler"] == sampler]
            values = [float(row[field]) for row in of_sampler]
            places = [names.index(row["system"]) for row in of_sampler]
            panel.plot(values, places, "o", alpha=0.7, label=sampler)
        panel.axvline(float(real[field]), color="black", linestyle="--", linewidth=1, label=REAL)
        panel.set(xlabel=field)
    panels[0].set(xlabel="bits/dim of held-out images", yticks=range(len(names)))
    panels[0].set_yticklabels(names)
    panels[0].invert_yaxis()
    panels[0].legend()
    panels[1].legend(fontsize=7)
    figure.savefig(file, dpi=80)


def main() -> None:
    """Train, measure, and print the table."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "benchmarks systems", description=__doc__, formatter_class=form
    )
    parser.add_argument("--data", choices=NUMBERS, default="digits")
    parser.add_argument("--data-dir", default="", help="data.dir of the trainings")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training for each system")
    parser.add_argument("--output", type=Path, default=Path("runs/systems"))
    parser.add_argument("--only", default=",".join(SYSTEMS), help="some of %(default)s")
    chosen: Any = parser.parse_args()
    names = chosen.only.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"--only = {','.join(unknown)}: allowed are {', '.join(SYSTEMS)}")
    if not chosen.minutes > 0:
        parser.error(f"--minutes = {chosen.minutes:g}: allowed are positive numbers")
    folder = chosen.output / f"{chosen.data}-{chosen.minutes:g}min"
    place = Place(folder, chosen.data, chosen.data_dir, chosen.minutes)
    for name in list(names):
        wanted = {place.preset(stage) for stage in SYSTEMS[name].stages}
        if missing := wanted - set(presets.names()):
            print(f"{name}: left out, as there is no preset {', '.join(missing)}")
            names.remove(name)
    if not names:
        return
    folder.mkdir(parents=True, exist_ok=True)
    rows = compare(place, names)
    table = markdown(rows)
    (folder / "systems.md").write_text(table)
    picture(folder / "systems.png", rows)
    print(f"\n{table}\nin {folder}: systems.csv, systems.md, systems.png")


if __name__ == "__main__":
    main()
