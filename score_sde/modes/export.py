"""`--mode export`: the averaged weights and the config of a run, as safetensors and JSON."""

from pathlib import Path

from ml_collections import ConfigDict

from score_sde import convert, workdirs
from score_sde.config import changed
from score_sde.modes import start
from score_sde.paths import is_url
from score_sde.run import load


def run(config: ConfigDict, workdir: Path, target: Path, step: int | None) -> None:
    """Write `model.safetensors` and `config.json` into the target, a new or empty folder."""
    start(1)
    loaded = load(workdir, config, step=step)
    arrays = convert.flattened(loaded.score.params)
    # It has one average, and training on would need the others.
    config = changed(config, {"sampling.average": 0.0, "training.average_every": 0})
    with workdirs.filled("target", target):
        # The weights last: they make the folder an export.
        path = workdirs.save(config, target, loaded.info)
        weights = convert.exported.write(target, arrays, loaded.step)
    print(f"weights: {weights} (averaged, after {loaded.step} steps)")
    print(f"config: {path}")
    if not is_url(target):
        print(f"next: --mode convert --source {target} --workdir DIR")
