"""`--mode config`: every key of a config with its value, its allowed values and what it is."""

import textwrap
from pathlib import Path

from ml_collections import ConfigDict

from score_sde import build
from score_sde.config import flat, kind_keys
from score_sde.densities import keys_read
from score_sde.inverse import METHODS
from score_sde.schema import SCHEMA
from score_sde.training.checkpoints import listing
from score_sde.unread import unused

COLUMNS, LEFT = 100, 48  # of a line; of mark, key and value


def run(config: ConfigDict, workdir: Path) -> None:
    """Print the config, and the checkpoints of a run. Nothing is written, and no device is
    started."""
    print(f"{config.name}: * differs from the default, - is not used beside the other values\n")
    values, unread = flat(config), unused(config) | _not_by_likelihood(config)
    section = ""
    for key, row in SCHEMA.items():
        if key != "name":
            if key.rpartition(".")[0] != section:
                section = key.rpartition(".")[0]
                print()
            mark = ("*" if values[key] != row.default else " ") + ("-" if key in unread else " ")
            print(_entry(mark, key, values[key], f"{row.help} ({row.allowed.words})"))
    if METHODS[config.restore.method].sampler:
        print(f"\n{_not_by_restorer(config)}")
    if there := listing(workdir):
        print("\ncheckpoints: step, date, loss", *there, sep="\n")


def _not_by_likelihood(config: ConfigDict) -> set[str]:
    """The keys of `likelihood` that its method does not read, as far as the data are known."""
    read = keys_read(config, build.known_info(config))
    return {f"likelihood.{key}" for key in set(config.likelihood) - read}


def _not_by_restorer(config: ConfigDict) -> str:
    """What `--mode restore` does not read of the samplers' keys, as its method has steps of its
    own. The other modes do."""
    method, read = config.restore.method, build.keys_read(config, build.restorer(config))
    unread = (kind_keys("sampling.method") & set(config.sampling) | {"method"}) - read
    unread |= {"batch_size"} if METHODS[method].by_particles else set()
    text = f"--mode restore by {method} does not read sampling's {', '.join(sorted(unread))}"
    return "\n".join(textwrap.wrap(text, COLUMNS, break_on_hyphens=False))


def _entry(mark: str, key: str, value: object, text: str) -> str:
    """One key: mark, key and value on the left, its text beside them in as many lines as it
    needs."""
    left = f"{mark} {key} = {'unset' if value is None else repr(value)}"
    if isinstance(value, tuple) and len(left) > COLUMNS:  # a thousand betas
        left = f"{left[: COLUMNS - 4]} ..."
    if len(left) >= LEFT:
        left += f"\n{'':{LEFT}}"
    lines = textwrap.wrap(text, COLUMNS - LEFT, break_on_hyphens=False)
    return f"{left:{LEFT}}" + f"\n{'':{LEFT}}".join(lines)
