"""`--mode train_classifier`: a classifier of noisy data beside a run, for classifier guidance."""

import sys
from pathlib import Path

from ml_collections import ConfigDict

from score_sde import build, learn, workdirs
from score_sde.modes import start
from score_sde.modes.levels import ACCURACY, accuracy_by_level
from score_sde.modes.train import UNFINISHED, end_at_once_on_interrupt
from score_sde.paths import write_json
from score_sde.training.mesh import data_mesh, is_writer


def run(config: ConfigDict, workdir: Path) -> None:
    """Train to `training.num_steps` in the folder `classifier` of the workdir, and measure the
    accuracy on the test split by the level of noise: `accuracy.json`."""
    end_at_once_on_interrupt()
    start(config.training.batch_size)
    mesh = data_mesh()
    step, logits = learn.train_classifier(config, workdir, mesh)
    if step < config.training.num_steps:
        sys.exit(UNFINISHED)
    found = accuracy_by_level(config, build.dataset(config), mesh, logits)
    if found and is_writer():
        path = workdir / workdirs.CLASSIFIER / ACCURACY
        write_json(path, {"step": step, **found})
        shares = found["accuracy"]
        times = ((0, "without noise"), (len(shares) // 2, "halfway in log-SNR"), (-1, "at T"))
        told = ", ".join(f"{shares[index]:.1%} {at}" for index, at in times)
        print(f"accuracy on {found['n']} held-out items: {told}; by level: {path}")
    print(
        f"next: --mode sample --workdir {workdir} --config.sampling.labels=0 "
        "--config.sampling.classifier_scale=1.0"
    )
