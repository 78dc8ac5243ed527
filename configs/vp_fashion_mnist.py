"""VP on Fashion-MNIST, 28x28 grey: a small U-Net of three resolutions.

    python main.py --config configs/vp_fashion_mnist.py --mode train
    python main.py --config configs/vp_fashion_mnist.py:conditional --mode train  # given the class

The images come from `--config.data.dir`, a prepared set or a download (see `score_sde/data`).
Expected: not measured yet.
Cost: made for one GPU; on 2 CPU cores the 20 000 steps take the better part of a day.
"""

from ml_collections import ConfigDict

from score_sde.config import check_variant, default


def get_config(variant: str = "") -> ConfigDict:
    check_variant(variant, "conditional")
    config = default()
    config.data.name = "fashion_mnist"
    config.sde.name = "vp"

    model = config.model
    model.width = 64
    model.multipliers = (1, 2, 2)  # 28, 14, 7
    model.num_blocks = 2
    model.attention_resolutions = (14,)

    training = config.training
    training.num_steps = 20_000
    training.batch_size = 128
    training.learning_rate = 1e-3
    training.warmup_steps = 500
    training.schedule = "cosine"
    training.ema_rate = 0.999
    training.dequantize = True
    training.checkpoint_every = 2000
    training.sample_every = 2000
    if variant:
        config.model.class_conditional = True
        config.training.label_dropout = 0.1  # so that --config.sampling.guidance is possible
    return config
