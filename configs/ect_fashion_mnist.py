"""Fashion-MNIST in one or two evaluations: Easy Consistency Tuning (Geng et al. 2024,
arXiv:2406.14548) of a run of `edm_fashion_mnist`.

    python main.py --config configs/edm_fashion_mnist.py --mode train
    python main.py --config configs/ect_fashion_mnist.py --mode train \\
        --config.training.from=runs/edm_fashion_mnist
    python main.py --mode sample --workdir runs/ect_fashion_mnist --config.sampling.num_steps=1

Reached with a smaller network, 300 steps after a teacher of 1000: of 300 images by one evaluation
95 % lie as near to real ones as these to each other, and of the teacher's by 35 80 %. That took 4
minutes after the teacher's 13, on one core of an x86-64 CPU with AVX2 (benchmarks/README.md). The
whole preset has not been trained.
Cost: 600 steps of 32 images, each little longer than one of the teacher: its second evaluation has
no gradient.
"""

from ml_collections import ConfigDict

from score_sde import presets
from score_sde.config import changed, check_variant


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "conditional")
    preset = "edm_fashion_mnist"
    config = presets.load(f"{preset}:{variant}" if variant else preset)
    training = config.training
    training.loss = "consistency"
    training.times_mean, training.times_std = -1.1, 2.0  # wider than EDM's: Geng et al., appendix
    training.num_steps = 600
    training.learning_rate = 5e-4
    training.warmup_steps = 50
    training.checkpoint_every = 200
    # The second evaluation is then at sigma = 0.80; Geng et al. have 0.82 on CIFAR-10.
    sampling = {"method": "consistency", "num_steps": 2, "rho": 20.0}
    return changed(config, {f"sampling.{name}": value for name, value in sampling.items()})
