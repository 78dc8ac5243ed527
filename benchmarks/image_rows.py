"""A picture of labelled rows of small images."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np


def save(path: Path, rows: Mapping[str, Sequence[np.ndarray]]) -> None:
    """Write the rows under their labels.

    Args:
        path: of the PNG.
        rows: by label, grey images (H, W, 1) with values from 0 (black) to 1 (white). All have one
            size, and all rows one length.
    """
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the choice of what draws

    framed = {
        label: [np.pad(image[..., 0], ((0, 0), (0, 1)), constant_values=1.0) for image in images]
        for label, images in rows.items()
    }
    number = len(next(iter(framed.values())))
    size = (1.5 + 0.5 * number, 0.55 * len(rows))
    figure, panels = pyplot.subplots(len(rows), figsize=size, layout="constrained", squeeze=False)
    for panel, (label, images) in zip(panels[:, 0], framed.items(), strict=True):
        panel.imshow(np.concatenate(images, axis=1), cmap="gray", vmin=0.0, vmax=1.0)
        panel.set(xticks=[], yticks=[])
        panel.spines[:].set_visible(False)
        panel.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    figure.savefig(path, dpi=80, bbox_inches="tight")  # long labels go beyond the layout
    pyplot.close(figure)
