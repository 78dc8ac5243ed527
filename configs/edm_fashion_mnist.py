"""EDM (Karras et al. 2022, arXiv:2206.00364) on Fashion-MNIST: the network of `vp_fashion_mnist`.

    python main.py --config configs/edm_fashion_mnist.py --mode train

Process, preconditioning, loss and sampler are those of `edm_digits`; the augmentation also mirrors.
The whole preset has not been trained. A smaller network was, for 1000 steps: 13 minutes on one core
of an x86-64 CPU with AVX2. Then 80 % of 300 images by the preset's sampler lie as near to real ones
as these to each other, and 85 % of the real ones to them (benchmarks/README.md).
Cost: as `vp_fashion_mnist`.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import changed, check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "conditional")
    preset = "vp_fashion_mnist"
    config = presets.load(f"{preset}:{variant}" if variant else preset)
    # Clothes mirrored left to right are clothes; upside down or turned they are not worn.
    config.data.augment = 0.12
    config.data.augmentations = ("flip_x", "scale", "stretch", "move")
    config.sde.name = "edm"

    config.model.sigma_data = 0.7  # the pixels' standard deviation, in [-1, 1]
    config.model.condition = "log_sigma"
    config.model.fourier_scale = 0.06  # half of the range of log-SNRs

    config.training.loss = "edm"
    config.training.t_min = config.likelihood.t_min = 0.002

    # 17 steps and the last, to 0.
    return changed(config, {"sampling.method": "heun", "sampling.num_steps": 17})
