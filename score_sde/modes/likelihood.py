"""`--mode likelihood`: bits per dimension of held-out images by the probability-flow ODE."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from score_sde import build, data
from score_sde.modes import start
from score_sde.run import ImageLikelihood, Run, load


def run(config: ConfigDict, workdir: Path) -> None:
    """Write `likelihood.npz`, one value for each image in the data set's order, and their summary,
    `likelihood.json`; print it. Both are rewritten after each batch, so that an interruption leaves
    what was computed by then.
    """
    settings = config.likelihood
    start(settings.batch_size)
    images, labels = data.load(config.data.name, settings.split, config.data.dir)
    images = images[: settings.num_images or len(images)]
    given = labels[: len(images)] if config.model.class_conditional else None
    trained = load(workdir, config)
    print(f"{workdir}: averaged weights after {trained.step} steps")
    batches = trained.likelihood_batches(jax.random.key(settings.seed), images, labels=given)
    parts: list[ImageLikelihood] = []
    with tqdm(total=len(images), unit="image", desc="likelihood") as bar:
        for part in batches:
            parts.append(part)
            joined = ImageLikelihood(*map(np.concatenate, zip(*parts, strict=True)))
            np.savez(workdir / "likelihood.npz", **joined._asdict())
            summary = _summary(trained, joined, len(images))
            (workdir / "likelihood.json").write_text(json.dumps(summary, indent=2) + "\n")
            bar.set_postfix_str(f"{summary['bits_per_dim']:.4f} bits/dim")
            bar.update(len(part.nfe))
    print(_in_words(summary))
    print(f"result: {workdir / 'likelihood.json'}")


def _in_words(summary: dict[str, Any]) -> str:
    spread = summary["standard_error"]
    error = "" if spread is None else f" +- {spread:.4f}"
    given = ", given the class" if summary["given_class"] else ""
    return (
        f"{summary['bits_per_dim']:.4f}{error} bits/dim over {summary['num_images']} images "
        f"({summary['data']}, {summary['split']}{given}), NFE {summary['nfe']:.0f}, "
        f"rtol {summary['rtol']:g}, atol {summary['atol']:g}, divergence {summary['divergence']}, "
        f"{summary['precision']}"
    )


def _summary(trained: Run, values: ImageLikelihood, wanted: int) -> dict[str, Any]:
    """Return everything that the figure depends on beside the figure."""
    config, number = trained.config, len(values.nfe)
    bits = values.bits_per_dim.astype(np.float64)
    return {
        "bits_per_dim": float(bits.mean()),
        "standard_error": float(bits.std(ddof=1)) / math.sqrt(number) if number > 1 else None,
        "num_images": number,
        "complete": number == wanted,
        "data": config.data.name,
        "split": config.likelihood.split,
        "given_class": config.model.class_conditional,
        "nfe": float(values.nfe.mean()),
        "divergence": config.likelihood.divergence,
        "num_probes": config.likelihood.num_probes,
        "rtol": config.likelihood.rtol,
        "atol": config.likelihood.atol,
        "t_min": config.likelihood.t_min,
        "dequantization": f"uniform, {build.pixel_range(config).levels} levels",
        "precision": "float32, products at highest",
        "seed": config.likelihood.seed,
        "weights": "averaged",
        "step": trained.step,
        "device": jax.devices()[0].device_kind,
    }
