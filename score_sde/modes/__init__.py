"""What `main.py --mode` can be: one module each, with a function `run(config, workdir)`."""

import os
from pathlib import Path

import jax
from absl import logging


def start() -> int:
    """Do what every mode begins with: keep compiled programs on disk, print the devices.

    JAX_COMPILATION_CACHE_DIR or XDG_CACHE_HOME move the programs from `~/.cache/score_sde/jax`.

    Returns:
        the number of devices.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # which JAX reads itself
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "score_sde" / "jax"))
    # The small programs that make a network add up to more than the large ones: keep them all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    logging.set_verbosity(logging.ERROR)  # Orbax warns of every save that it waits for
    devices = jax.devices()
    print(f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")
    return len(devices)
