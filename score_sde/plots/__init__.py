"""Figures for notebooks: images, points, densities, scores and results.

Each function returns a matplotlib figure; `animation` returns HTML. Figures are white in every
theme of a notebook: a transparent one would need grey text, which is pale on white and on black.
`svg` makes a part of a page of one, in the page's colours.

Where points or images are taken, so is what a sampler or `Run.sample` returned: its `x`.
"""

from score_sde.plots.base import images
from score_sde.plots.films import animation
from score_sde.plots.inline import svg
from score_sde.plots.points import clouds, contours, corner, scatter, score
from score_sde.plots.results import (
    accuracy_by_level,
    likelihoods,
    loss_by_level,
    losses,
    quality,
)

__all__ = [
    "accuracy_by_level",
    "animation",
    "clouds",
    "contours",
    "corner",
    "images",
    "likelihoods",
    "loss_by_level",
    "losses",
    "quality",
    "scatter",
    "score",
    "svg",
]
