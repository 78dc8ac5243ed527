"""Scores during a training, and its best checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental.multihost_utils import broadcast_one_to_all
from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_sde import build, evaluation, scoring
from score_sde.config import flat
from score_sde.data import Arrays, DatasetInfo
from score_sde.display import eight_bits
from score_sde.errors import UserError
from score_sde.evaluation import Statistics
from score_sde.paths import local, move_aside, write_json
from score_sde.progress import bar
from score_sde.run import assembled
from score_sde.training.checkpoints import BEST, RECORD, Checkpoints, best_record, newest_step
from score_sde.training.mesh import is_writer
from score_sde.training.state import TrainState

Score = Callable[[int, TrainState], dict[str, float]]


def scorer(
    config: ConfigDict,
    info: DatasetInfo,
    apply: Callable[..., Array],
    arrays: Arrays,
    workdir: Path,
    mesh: Mesh,
) -> Score:
    """Return a hook for the loop. It draws `eval.training_samples` images by the config's sampler
    with the averaged weights, returns their distance to the training split, and keeps the
    checkpoint of the least in `best`, with `best.json`.

    What needs no training is done here: the extractor, and the features of the reference.

    Args:
        config, info, apply, mesh: of the run.
        arrays: its training split.
        workdir: gets the checkpoint, the features and the classifier.

    Raises:
        UserError: as `scoring.extractor`; a file of statistics of other features.
    """
    number, judge = config.eval.training_samples, None
    if is_writer():  # of several processes, which draw together
        made_by = scoring.extractor(config, info, (workdir,), arrays)
        judge = made_by, _reference(config, info, made_by, arrays, workdir)

    def score(step: int, state: TrainState) -> dict[str, float]:
        run, found = assembled(config, step, apply, state.ema, info, mesh, []), []
        with bar(total=number, desc=f"scoring step {step}", unit="image", leave=False) as shown:
            try:
                for part in run.sample_batches(jax.random.key(config.sampling.seed), number):
                    if judge:
                        images = eight_bits(part.x, info.levels or 256)
                        size = config.eval.batch_size
                        found.append(evaluation.features(judge[0].function, images, size))
                    shown.update(len(part.nfe))
            except UserError as error:  # a young network's samples need not be finite
                print(f"note: step {step} has no score: {error}")
                return {}
        name, value, is_best = "", 0.0, False
        if judge:
            made_by, reference = judge
            name = made_by.distance_of(number)
            # A digest of a split's statistics would differ between machines, by rounding.
            own = f"{reference.n} of the training split"
            of = reference.digest if config.eval.statistics else own
            kind = {"name": name, **made_by.about, "reference": of, **_sampling(config)}
            value = evaluation.frechet_distance(reference, evaluation.statistics(found))
            is_best = _is_best(workdir, kind, step, value)
        if broadcast_one_to_all(np.int32(is_best)):
            _keep(workdir, step, state, {"step": step, "value": value, **kind} if judge else None)
        return {name: value} if judge else {}

    return score


def _keep(workdir: Path, step: int, state: TrainState, record: dict[str, Any] | None) -> None:
    """Save the best checkpoint, and its record in the process that writes."""
    if newest_step(workdir / BEST) < step:
        with Checkpoints(workdir / BEST, keep=1) as best:
            best.save(state, step)
    if record:
        write_json(workdir / RECORD, record)


def _sampling(config: ConfigDict) -> dict[str, Any]:
    """The settings of the samples that are scored, as JSON gives them back."""
    of_files = {"sampling.num_samples", "sampling.gif", "sampling.png", "sampling.average"}
    if not build.sampler(config).coupled:  # then an item does not depend on those drawn with it
        of_files.add("sampling.batch_size")
    values = {key: value for key, value in flat(config).items() if key.startswith("sampling.")}
    kept = {key: value for key, value in values.items() if key not in of_files}
    found: dict[str, Any] = json.loads(json.dumps(kept))
    return found


def _is_best(workdir: Path, of: dict[str, Any], step: int, value: float) -> bool:
    """Whether a score is less than the recorded one. Steps that are made again after an
    interruption, and have a checkpoint already, are no better. The best by scores of another kind,
    or by an unknown one, is kept under another name."""
    record, there = best_record(workdir), newest_step(workdir / BEST)
    has_record = (workdir / RECORD).exists()
    # Earlier versions did not record these.
    usual = {key: of.get(key) for key in ("reference", "sampling.batch_size")}
    is_same = all({**usual, **record}.get(key) == said for key, said in of.items())
    if (has_record and not (record and is_same)) or (not has_record and 0 < there < step):
        unknown = f"{RECORD} cannot be read" if has_record else f"without {RECORD}"
        move_aside([workdir / RECORD, workdir / BEST], "by other scores" if record else unknown)
        return True
    if there > step:
        return False
    return not record or value < record["value"]


def _reference(
    config: ConfigDict,
    info: DatasetInfo,
    made_by: scoring.Extractor,
    arrays: Arrays,
    workdir: Path,
) -> Statistics:
    """The statistics of the training split: those of a file, or of its features."""
    if config.eval.statistics:
        path = local(config.eval.statistics, "config.eval.statistics")
        found = evaluation.read_statistics(path)
        made_by.check(found.about, len(found.mu), str(path))
        return found
    images = scoring.training_split(config, info, arrays.x)
    about = {"set": info.name, "split": "train", "n": len(images)}
    settings = workdir / scoring.FOLDER, config.eval.batch_size, about
    return scoring.statistics(made_by, scoring.features(made_by, images, *settings), about)
