"""`--mode evaluate`: figures of sample quality, with everything that they depend on."""

import json
from contextlib import ExitStack
from pathlib import Path

from ml_collections import ConfigDict

from score_sde.config import refuse
from score_sde.errors import UserError
from score_sde.locks import writing
from score_sde.modes import likelihood, start, sweep, tell_unread
from score_sde.modes.judge import SUMMARY, Judge
from score_sde.modes.levels import loss_by_level
from score_sde.modes.sides import Side, check_room, drawn, keys_read, named
from score_sde.paths import write_json
from score_sde.run import load
from score_sde.training.checkpoints import folder_of, steps


def run(
    config: ConfigDict,
    workdir: Path,
    output: Path,
    step: int | None,
    samples: Path | str,
    reference: Path | str,
) -> None:
    """Write `evaluation.json` into the output, and print it; `nearest.png` has samples and the
    reference images that are nearest to them.

    The samples are drawn as `--mode sample` draws them, into `samples.npz`, unless `samples` names
    other images. The reference is the training split unless `reference` names images, features or
    statistics. The features of both are kept in `features`, so the same command continues after an
    interruption.
    """
    ours = named(Path(samples)) if samples else None
    if ours and ours.statistics:
        raise UserError(f"--samples = '{samples}': statistics; allowed are images")
    if step is not None:
        if samples:
            raise UserError(f"--step = {step}: not with --samples, which come from no checkpoint")
        if step not in (there := steps(folder_of(workdir, step))):
            allowed = ", ".join(map(str, there)) or "none: train first (--mode train)"
            raise UserError(f"--step = {step}: not in {workdir}; allowed are {allowed}")
    if config.eval.sweep:
        if samples:
            raise refuse("eval.sweep", config.eval.sweep, "'' with --samples")
        sweep.run(config, workdir, output, step, reference)
        return
    with ExitStack() as locks:  # before any work
        if not samples:
            locks.enter_context(writing(output, "samples"))
        if config.eval.likelihood and not samples:
            locks.enter_context(writing(output, "likelihoods"))
        _one(config, workdir, output, step, ours, reference)


def _one(
    config: ConfigDict,
    workdir: Path,
    output: Path,
    step: int | None,
    ours: Side | None,
    reference: Path | str,
) -> None:
    """Evaluate one set: `ours`, or samples of the run."""
    start(min(config.eval.num_samples, config.sampling.batch_size))
    if ours is None:
        check_room(config, workdir, output)
    # One checkpoint for all that follows, also where a training replaces it by newer ones.
    trained = None if ours else load(workdir, config, step=step)
    info = trained.info if trained else None
    tell_unread(config, workdir, keys_read(config, info, reference))
    judge = Judge.of(config, workdir, output, reference)
    side = ours if trained is None else drawn(trained, workdir, output)
    assert side is not None
    facts = judge.score(side, output)
    print(json.dumps(facts["figures"], indent=2))
    if trained:  # what the model says of data, whatever is drawn from it
        try:
            levels = loss_by_level(trained)
        except UserError as error:  # of data that cannot be read, beside a reference from elsewhere
            print(f"note: without the loss by level: {error}")
            levels = {}
        if levels:
            facts["loss_by_level"] = levels
            write_json(output / SUMMARY, facts)
        if config.eval.likelihood:
            facts["likelihood"] = likelihood.compute(trained, workdir, output)
            write_json(output / SUMMARY, facts)
    print(f"result: {output / SUMMARY}")
