"""The modes: one module each, with a function `run(config, workdir)`.

Only `start` imports JAX. A mode that needs no devices does without.
"""

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from logging import getLogger
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from score_sde import paths, workdirs
from score_sde.config import changed, default, flat
from score_sde.errors import UserError, one_line

# The settings of JAX on which a command's numbers depend, or whether it runs at all, and their
# values: what the environment says is reported and has no effect.
SETTINGS = {
    "jax_enable_x64": False,  # results say float32
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_random_seed_offset": 0,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
    "jax_debug_nans": False,  # a failed solve ends as nan, to be reported
    "jax_debug_infs": False,
    "jax_transfer_guard": None,
    "jax_default_device": None,  # JAX_PLATFORMS chooses
}

_show = warnings.showwarning


def start(batch_size: int) -> None:
    """Begin a mode: keep compiled programs on disk, set up and print the devices.

    JAX_COMPILATION_CACHE_DIR or XDG_CACHE_HOME move the programs from `~/.cache/score_sde/jax`.
    A process that has used JAX before keeps its devices.

    Args:
        batch_size: images that the devices share.

    Raises:
        UserError: there is no such device as JAX_PLATFORMS asks for.
    """
    import jax

    settings: Any = jax.config
    for name, value in SETTINGS.items():
        if (found := getattr(settings, name)) != value:
            print(f"note: {name.upper()} = {found} has no effect here; commands take {value}")
            settings.update(name, value)
    if precision := settings.jax_default_matmul_precision:
        rounded = "training and samplers round otherwise than by default"
        print(f"note: JAX_DEFAULT_MATMUL_PRECISION = {precision}: {rounded}")
    if settings.jax_disable_jit:
        print("note: JAX_DISABLE_JIT = True: nothing is compiled, and all takes many times as long")
    _cores_as_devices(batch_size)
    _keep_programs()
    _quiet_orbax()
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter for cuda without its plugin
        why = one_line(error)[:100] or "not there"
        raise UserError(
            f"JAX_PLATFORMS = {settings.jax_platforms!r}: {why}; allowed are platforms that this "
            "machine and this installation of JAX have, such as cpu"
        ) from error
    print(f"devices: {len(devices)} x {devices[0].device_kind} ({devices[0].platform})")


def _quiet_orbax() -> None:
    """Leave out what Orbax says beside the errors that it raises, such as those of a full disk: it
    logs them, as it does every save that it waits for, and its tasks end in tracebacks."""
    logging.set_verbosity(logging.FATAL)
    getLogger("asyncio").setLevel("CRITICAL")
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _unless_its_loop_is_closed


def _unless_its_loop_is_closed(found: Any) -> None:
    """Report an exception that nobody can catch, as Python does."""
    if f"{found.exc_value}" != "Event loop is closed":
        sys.__unraisablehook__(found)


def _keep_programs() -> None:
    """Have JAX keep compiled programs on disk, if there is a folder for them."""
    import jax

    # The small programs that make a network add up to more than the large ones: keep them all.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")  # which JAX reads itself
    if given is not None and (not given or paths.is_url(given)):
        return
    try:
        ours = paths.local(given, "JAX_COMPILATION_CACHE_DIR") if given else None
        folder = ours or paths.cache("cache", "do without") / "jax"
        with paths.written(folder):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    except UserError as error:
        print(
            f"note: compiled programs are not kept: {error}; JAX_COMPILATION_CACHE_DIR moves them"
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return
    # The disk may be full later on.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
    warnings.showwarning = _tell_once_of_damage(folder)


def _tell_once_of_damage(folder: Path) -> Callable[..., None]:
    """Return a `warnings.showwarning` with one line for all the damaged programs in a folder.

    A full disk or a killed process can leave many. JAX warns of each, at every start, and does not
    replace them.
    """
    told = False

    def show(message: Warning | str, *rest: Any, **others: Any) -> None:
        nonlocal told
        if not f"{message}".startswith("Error reading persistent compilation cache entry"):
            _show(message, *rest, **others)
        elif not told:
            told = True
            print(f"note: {folder}: damaged programs there are compiled anew; delete the folder")

    return show


def tell_unread(
    config: ConfigDict,
    workdir: Path,
    read: set[str],
    sections: tuple[str, ...] = ("sampling.", "likelihood.", "restore.", "eval."),
) -> None:
    """Print the settings of these sections that were changed and have no effect."""
    # Anybody's images are evaluated without a run.
    saved = workdirs.load(workdir) if workdirs.is_run(workdir) else default()
    # A sampler other than the saved one begins with its own settings.
    begun = flat(changed(saved, {"sampling.method": config.sampling.method}))
    begun["sampling.method"] = saved.sampling.method
    usual = flat(default())
    unread = [
        f"config.{key}"
        for key, value in sorted(flat(config).items())
        if workdirs.is_free(key, sections)
        and key not in {*read, "sampling.average"}
        and value not in (usual[key], begun[key])
    ]
    say_unread(unread)


def say_unread(keys: list[str]) -> None:
    """Print the keys of settings without effect, if there are any."""
    if keys:
        print(f"not read with these settings: {', '.join(keys)}")


def _cores_as_devices(batch_size: int) -> None:
    """Make each CPU core a device, as far as their number divides the batch.

    XLA spreads a large convolution over the cores, but runs the many small operations of a network
    on one: with a part of the batch for each of two cores the digits' step takes about 0.7 of the
    time (without dropout, see benchmarks). Each gets 8 images at least. Nothing changes where
    XLA_FLAGS or JAX_NUM_CPU_DEVICES say how many devices there are, or for other devices than the
    CPU's.
    """
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    settings: Any = jax.config
    if settings.jax_num_cpu_devices > 0:  # also by a notebook
        return
    # Not all systems report how many of the cores this process may use.
    available = getattr(os, "sched_getaffinity", None)
    cores = len(available(0)) if available else os.cpu_count() or 1
    most = max(1, min(cores, batch_size // 8))
    number = max(n for n in range(1, most + 1) if batch_size % n == 0)
    with suppress(RuntimeError):  # JAX has begun, with the devices that it has
        jax.config.update("jax_num_cpu_devices", number)
