"""The modes: one module each, with a function `run(config, workdir)`.

Only `start` imports JAX. A mode that needs no devices does without.
"""

import os
from contextlib import suppress
from pathlib import Path

from absl import logging
from ml_collections import ConfigDict

from score_sde import workdirs
from score_sde.config import changed, default, flat


def start(batch_size: int) -> int:
    """Begin a mode: keep compiled programs on disk, set up and print the devices.

    JAX_COMPILATION_CACHE_DIR or XDG_CACHE_HOME move the programs from `~/.cache/score_sde/jax`.
    A process that has used JAX before keeps its devices.

    Args:
        batch_size: images that the devices share.

    Returns:
        the number of devices.
    """
    import jax

    _cores_as_devices(batch_size)
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


def tell_unread(config: ConfigDict, workdir: Path, read: set[str]) -> None:
    """Print the settings for sampling and likelihood that were changed and have no effect."""
    saved = workdirs.load(workdir)
    # A sampler other than the saved one begins with its own settings.
    begun = flat(changed(saved, {"sampling.method": config.sampling.method}))
    begun["sampling.method"] = saved.sampling.method
    usual = flat(default())
    unread = [
        f"config.{key}"
        for key, value in sorted(flat(config).items())
        if workdirs.is_free(key, ("sampling.", "likelihood."))
        and key not in read
        and value not in (usual[key], begun[key])
    ]
    if unread:
        print(f"not read with these settings: {', '.join(unread)}")


def _cores_as_devices(batch_size: int) -> None:
    """Make each CPU core a device, as far as their number divides the batch.

    XLA spreads a large convolution over the cores, but runs the many small operations of a network
    on one: with a part of the batch for each of two cores the digits' step takes about 0.7 of the
    time (without dropout, see benchmarks). Each gets 8 images at least. Nothing changes where
    XLA_FLAGS say how many devices there are, or for other devices than the CPU's.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    # Not all systems report how many of the cores this process may use.
    available = getattr(os, "sched_getaffinity", None)
    cores = len(available(0)) if available else os.cpu_count() or 1
    most = max(1, min(cores, batch_size // 8))
    number = max(n for n in range(1, most + 1) if batch_size % n == 0)
    with suppress(RuntimeError):  # JAX has begun, with the devices that it has
        jax.config.update("jax_num_cpu_devices", number)
