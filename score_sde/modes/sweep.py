"""`--mode evaluate` of several settings at once: `eval.sweep`."""

import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from score_sde import __version__, overrides, rules
from score_sde.config import changed, flat, refuse, unknown_key
from score_sde.errors import DAMAGED
from score_sde.locks import writing
from score_sde.modes import start, tell_unread
from score_sde.modes.files import digest
from score_sde.modes.judge import Judge, read
from score_sde.modes.sides import check_room, drawn, keys_read
from score_sde.paths import move_aside, whole, write_json
from score_sde.run import Run, assembled, load
from score_sde.schema import SCHEMA
from score_sde.training.checkpoints import BEST, steps
from score_sde.validation import validate

FOLDER, JSON, CSV, PICTURE = "sweep", "sweep.json", "sweep.csv", "sweep.png"
NOT = {"sampling.num_samples", "sampling.gif", "sampling.png"}  # of which evaluation has its own
ALLOWED = "KEY=VALUE,VALUE;KEY=VALUE of keys of sampling that evaluation reads, and step"


Weights = tuple[int | None, float]
"""The step, and the length of the average."""


class Setting(NamedTuple):
    """One setting of a sweep: its values by their keys, the config with them, and the step."""

    values: dict[str, Any]
    config: ConfigDict
    step: int | None

    @property
    def weights(self) -> Weights:
        """Which weights it takes."""
        return self.step, self.config.sampling.average

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = [f"{key.removeprefix('sampling.')}={value}" for key, value in self.values.items()]
        return re.sub(r"[^\w=.,+-]", "_", "_".join(parts))


def settings_of(config: ConfigDict, workdir: Path, step: int | None) -> list[Setting]:
    """All combinations of the values in `eval.sweep`.

    Raises:
        UserError: a wrong key or value, or a step without a checkpoint.
    """
    text, choices = config.eval.sweep, {}
    # Spaces may separate, and stand beside the other signs.
    for part in filter(None, re.split(r"[;\s]+", re.sub(r"\s*([=,(])\s*|\s+(?=\))", r"\1", text))):
        key, _, values = part.partition("=")
        if key != "step" and key not in SCHEMA:
            raise unknown_key(key, values)
        is_allowed = key == "step" or (key.startswith("sampling.") and key not in NOT)
        if not values or not is_allowed or key in choices:
            raise refuse("eval.sweep", text, ALLOWED)
        found = re.split(r",(?![^(]*\))", values)  # not those within a tuple
        choices[key] = list(dict.fromkeys(found))
    if not choices:
        raise refuse("eval.sweep", text, ALLOWED)
    if "step" in choices:
        choices["step"] = _steps(text, choices["step"], workdir)
    plain = changed(config, {"eval.sweep": ""})
    settings = [
        _setting(plain, dict(zip(choices, values, strict=True)), step)
        for values in itertools.product(*choices.values())
    ]
    return list({(*each.values.items(),): each for each in settings}.values())  # 0 and 0.0 are one


def _steps(text: str, values: list[str], workdir: Path) -> list[str]:
    """The steps that a sweep names; `best` is that of the best checkpoint."""
    best = steps(workdir / BEST)
    there = sorted({*steps(workdir / "checkpoints"), *best})
    allowed = [*map(str, there), *([BEST] if best else [])]
    for value in values:
        if value not in allowed:
            raise refuse("eval.sweep", text, f"step of {', '.join(allowed)}")
    return list(dict.fromkeys(f"{best[-1]}" if each == BEST else each for each in values))


def _setting(config: ConfigDict, typed: dict[str, str], step: int | None) -> Setting:
    step = int(typed["step"]) if "step" in typed else step
    given = [f"--config.{key}={value}" for key, value in typed.items() if key != "step"]
    config = overrides.apply(config, given)
    validate(config)
    values = {**flat(config), "step": step}  # `step` is no key of a config
    return Setting({key: values[key] for key in typed}, config, step)


def run(
    config: ConfigDict, workdir: Path, output: Path, step: int | None, reference: Path | str
) -> None:
    """Evaluate each setting in its own folder `sweep/NAME` within the output. Write `sweep.json`,
    `sweep.csv` and `sweep.png` after each, and print the table. Settings that are done, with the
    same weights and reference, are not done again."""
    settings = settings_of(config, workdir, step)
    if config.eval.likelihood:
        raise refuse("eval.likelihood", True, "False with config.eval.sweep")
    start(min(config.eval.num_samples, config.sampling.batch_size))
    folders = [output / FOLDER / setting.name for setting in settings]
    with ExitStack() as locks:  # to the end: the table is of what all of these folders have
        for folder in folders:
            locks.enter_context(writing(folder, "evaluations"))
            locks.enter_context(writing(folder, "samples"))
        _evaluate(config, workdir, output, reference, settings, folders)


def _evaluate(
    config: ConfigDict,
    workdir: Path,
    output: Path,
    reference: Path | str,
    settings: list[Setting],
    folders: list[Path],
) -> None:
    """Evaluate each setting in its folder, which nobody else writes to."""
    check_room(config, workdir, folders[0])
    # All steps at once: beside a training they may soon be gone.
    runs = {
        at: _loaded([each for each in settings if each.weights == at], workdir)
        for at in dict.fromkeys(setting.weights for setting in settings)
    }
    read_by = (
        keys_read(each.config, runs[each.weights].info, reference) | set(each.values)
        for each in settings
    )
    tell_unread(config, workdir, set[str]().union(*read_by))
    judge = Judge.of(config, workdir, output, reference)
    distance = judge.extractor.distance_of(config.eval.num_samples)
    depends = [_depends(setting, judge, runs[setting.weights]) for setting in settings]
    facts = [_done(read(folder), distance) for folder in folders]
    _keep_other(output, _rows(settings, facts, depends))
    for number, setting in enumerate(settings):
        words = ", ".join(f"{key}={value}" for key, value in setting.values.items())
        print(f"setting {number + 1} of {len(settings)}: {words}")
        if facts[number].get("depends") != depends[number]:
            folder = folders[number]
            samples = drawn(_of(setting, runs), workdir, folder)
            mine = judge._replace(config=setting.config)
            facts[number] = mine.score(samples, folder, depends=depends[number])
        done = _rows(settings, facts, depends)
        _write(output, done, distance, config.sampling.method)
    print("\n".join(_table(done, distance)))
    print(f"result: {output / JSON}, {output / CSV}, {output / PICTURE}")


def _loaded(settings: Sequence[Setting], workdir: Path) -> Run:
    """The run of settings with the same weights, and its classifier if one of them has it."""
    configs = [each.config for each in settings]
    guided = [config for config in configs if config.sampling.classifier_scale]
    run = load(workdir, [*guided, *configs][0], step=settings[0].step)
    for config in configs:
        rules.check(config, run.info)
    return run


def _of(setting: Setting, runs: Mapping[Weights, Run]) -> Run:
    """The run with a setting."""
    run, config = runs[setting.weights], setting.config
    parts = config, run.step, run.score.apply, run.score.params, run.info, run.mesh, run.metrics
    classifier = run.classifier if config.sampling.classifier_scale else None
    return dataclasses.replace(assembled(*parts), classifier=classifier)


def _depends(setting: Setting, judge: Judge, run: Run) -> Any:
    """What the figures of a setting depend on, as JSON gives it back."""
    classifier = run.classifier if setting.config.sampling.classifier_scale else None
    weights = digest(jax.tree.leaves((run.score, classifier)))
    values = flat(setting.config)
    unread = {f"eval.{key}" for key in ("batch_size", "inception_weights", "statistics")}
    read = [key for key in values if key.startswith(("sampling.", "eval.")) and key not in unread]
    found = {
        "version": __version__,
        **{key: values[key] for key in read},
        "step": run.step,
        "weights": weights,
        "extractor": judge.extractor.about,
        "reference": judge.statistics.digest,
    }
    return json.loads(json.dumps(found))


def _done(facts: dict[str, Any], distance: str) -> dict[str, Any]:
    """The facts of an evaluation; {} of one that lacks what a row needs."""
    try:
        row = facts["samples"]["nfe"], facts["figures"][distance]
    except DAMAGED:
        return {}
    return facts if all(isinstance(each, float) for each in row) else {}


def _rows(
    settings: Sequence[Setting], facts: Sequence[Mapping[str, Any]], depends: Sequence[Any]
) -> list[dict[str, Any]]:
    """The settings that are done, with their figures."""
    return [
        {"settings": setting.values, "nfe": said["samples"]["nfe"], "figures": said["figures"]}
        for setting, said, wanted in zip(settings, facts, depends, strict=True)
        if said.get("depends") == wanted
    ]


def _keep_other(output: Path, done: Sequence[Mapping[str, Any]]) -> None:
    """Move a sweep with other rows out of the way, and report it."""
    try:
        there = json.loads((output / JSON).read_bytes())
    except FileNotFoundError:
        return
    except DAMAGED:
        there = None
    there = there if isinstance(there, list) else [None]
    known = json.loads(json.dumps(done))
    if any(row not in known for row in there):
        move_aside([output / name for name in (JSON, CSV, PICTURE)], "of another sweep")


# --- What is written ------------------------------------------------------------------------------


def _write(output: Path, rows: list[dict[str, Any]], distance: str, method: str) -> None:
    from score_sde import plots  # here, as matplotlib takes its time

    write_json(output / JSON, rows)
    flat_rows = [{**row["settings"], "nfe": row["nfe"], **_plain(row["figures"])} for row in rows]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(itertools.chain(*flat_rows))))
    writer.writeheader()
    writer.writerows(flat_rows)
    with whole(output / CSV) as file:
        file.write(text.getvalue().encode())
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        named = {key: row["settings"][key] for key in row["settings"] if "num_steps" not in key}
        title = ", ".join(f"{key.removeprefix('sampling.')} {named[key]}" for key in named)
        lines.setdefault(title or method, []).append((row["nfe"], row["figures"][distance]))
    with whole(output / PICTURE) as file:
        plots.quality(lines, distance).savefig(file, format="png", dpi=150)


def _plain(figures: Mapping[str, Any]) -> dict[str, float]:
    """Figures as columns: a value with a standard error has two."""
    found: dict[str, float] = {}
    for name, value in figures.items():
        if not isinstance(value, Mapping):
            found[name] = value
        elif "value" in value:
            found |= {name: value["value"], f"{name} standard error": value["standard_error"]}
    return found


def _table(rows: list[dict[str, Any]], distance: str) -> Iterator[str]:
    """The rows as lines of text."""
    others = ("precision", "recall", "density", "coverage")
    columns = [*rows[0]["settings"], "NFE", distance]
    columns += [name for name in others if name in rows[0]["figures"]]
    cells = [columns]
    for row in rows:
        figures = [row["figures"][name] for name in columns[len(row["settings"]) + 1 :]]
        numbers = [f"{value:.4g}" for value in (row["nfe"], *figures)]
        cells.append([*map(str, row["settings"].values()), *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for line in cells:
        yield "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
