"""Figures for notebooks: images, points, densities, scores and results.

Each function returns a matplotlib figure; `animation` returns HTML. Figures are white in every
theme of a notebook: a transparent one would need grey text, which is pale on white and on black.

Where points or images are taken, so is what a sampler or `Run.sample` returned: its `x`.
"""

from score_sde.plots.base import images
from score_sde.plots.films import animation
from score_sde.plots.points import contours, corner, scatter, score
from score_sde.plots.results import likelihoods, losses, quality

__all__ = [
    "animation",
    "contours",
    "corner",
    "images",
    "likelihoods",
    "losses",
    "quality",
    "scatter",
    "score",
]
