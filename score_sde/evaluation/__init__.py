"""Figures of sample quality.

A feature function maps images uint8 (B, H, W, C) to features (B, F); the FID is defined by that of
`inception`. `features` applies one to many images. The others are functions of features.
"""

from score_sde.evaluation.distances import (
    Estimate,
    Extrapolated,
    fid_infinity,
    frechet_distance,
    inception_score,
    kid,
    sliced_wasserstein,
)
from score_sde.evaluation.extraction import (
    Statistics,
    batches,
    check_same,
    features,
    read_statistics,
    statistics,
    write_statistics,
)
from score_sde.evaluation.neighbours import Manifolds, manifolds, nearest
from score_sde.evaluation.network import FeatureFn, inception
from score_sde.evaluation.rows import Rows

__all__ = [
    "Estimate",
    "Extrapolated",
    "FeatureFn",
    "Manifolds",
    "Rows",
    "Statistics",
    "batches",
    "check_same",
    "features",
    "fid_infinity",
    "frechet_distance",
    "inception",
    "inception_score",
    "kid",
    "manifolds",
    "nearest",
    "read_statistics",
    "sliced_wasserstein",
    "statistics",
    "write_statistics",
]
