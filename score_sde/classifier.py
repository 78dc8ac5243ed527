"""The classifier of noisy data beside a run, which `--mode train_classifier` trains."""

from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from score_sde import build, networks, workdirs
from score_sde.config import flat, refuse
from score_sde.data import DatasetInfo
from score_sde.errors import UserError
from score_sde.score import Logits
from score_sde.training import checkpoints
from score_sde.training.mesh import replicated


def load(workdir: Path, config: ConfigDict, info: DatasetInfo, mesh: Mesh) -> tuple[int, Logits]:
    """Load the classifier of a run, with the averaged weights, and the updates that it had.

    Args:
        workdir: of the run.
        config: of the run.
        info: of the run's data.
        mesh: the devices.

    Raises:
        UserError: there is none, or it is of another process or other data.
    """
    folder, scale = workdir / workdirs.CLASSIFIER, config.sampling.classifier_scale
    if not (folder / workdirs.FILE).is_file():
        allowed = f"0, as there is no {folder}; --mode train_classifier trains one"
        raise refuse("sampling.classifier_scale", scale, allowed)
    own, kept = workdirs.load(folder), workdirs.load_info(folder)
    for key, value in workdirs.changes(own, config, ()).items():
        if workdirs.is_free(key, workdirs.SHARED):
            theirs = f"{value!r:.80}, the run has {flat(config)[key]!r:.80}"
            raise UserError(f"{folder}: a classifier of config.{key} = {theirs}; train another")
    if kept is None or (kept.shape, kept.num_classes) != (info.shape, info.num_classes):
        raise UserError(f"{folder}: a classifier of other data than the run's")
    apply, params = networks.abstract(build.network(own, kept, logits=kept.num_classes))
    step, ema = checkpoints.restore_ema(folder / "checkpoints", params, replicated(mesh))
    return step, build.classifier(own, apply, ema)
