"""`--mode report`: a run on one page of HTML, of what is there; nothing is drawn for it."""

import sys
import traceback
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from score_sde import __version__, build, pages, presets, workdirs
from score_sde.config import default, flat
from score_sde.display import shortened
from score_sde.errors import DAMAGED, UserError, one_line
from score_sde.modes.sections import SECTIONS, Found
from score_sde.paths import move_aside, whole
from score_sde.training.mesh import is_writer

PAGE = "report.html"


def run(config: ConfigDict, workdir: Path, output: Path, against: Path | str) -> None:
    """Write `report.html` into the output: of the run alone, or beside another one.

    Results are taken from the output where it has them, else from the workdir.
    """
    runs = [_found("a", config, workdir, output)]
    if against:
        other = Path(against)
        if not (other / workdirs.FILE).is_file():
            raise workdirs.missing(other, "against")
        runs.append(_found("b", workdirs.load(other), other, other))
    sections = {}
    for heading, section in SECTIONS.items():
        contents = [(f"{each.workdir}", _shown(section, heading, each)) for each in runs]
        if any(content for _, content in contents):
            none = pages.paragraph("None", kind="missing")
            sections[heading] = pages.columns([(name, each or none) for name, each in contents])
    sections["Config"] = _config(runs)
    title = " and ".join(dict.fromkeys(each.config.name for each in runs))
    footer = f"score_sde {__version__}, {date.today()}"
    path = output / PAGE
    if path.is_file() and b"score_sde" not in path.read_bytes():
        move_aside([path], "no page of ours")
    with whole(path) as file:
        file.write(pages.page(title, sections, footer).encode(errors="backslashreplace"))
    print(f"report: {output / PAGE}")


def after(config: ConfigDict, workdir: Path, output: Path) -> None:
    """Write the report of a command that has ended well, and that stays so whatever comes here."""
    if not is_writer() or not workdirs.is_run(workdir):  # anybody's images have no run
        return
    try:
        run(config, workdir, output, "")
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        print(f"note: no {PAGE}: {one_line(error)}", file=sys.stderr)


def _found(name: str, config: ConfigDict, workdir: Path, output: Path) -> Found:
    info = workdirs.load_info(workdir) or build.dataset(config)
    return Found(name, workdir, (output, workdir), config, info, [])


def _shown(section: Callable[[Found], str], heading: str, found: Found) -> str:
    """A section; where its files cannot be read, which ones."""
    found = found._replace(read=[])
    try:
        return section(found)
    except UserError as error:
        why = f"{error}"
    except DAMAGED as error:
        reason = getattr(error, "strerror", None) or "not as this version writes them"
        files = getattr(error, "filename", None) or " or ".join(map(str, found.read))
        why = f"{files}: cannot be read ({reason})"
    line = f"{heading}: left out: {why}; move it away and run the mode that wrote it again"
    print(f"note: {line}", file=sys.stderr)
    return pages.paragraph(f"{line}.", kind="missing")


def _config(runs: list[Found]) -> str:
    """What differs from the presets and between two runs, and all keys."""
    values = [flat(each.config) for each in runs]
    usual, names = zip(*(_preset(each.config) for each in runs), strict=True)
    head = ["key", *(f"{each.workdir}" for each in runs)]
    rows = []
    for key in values[0]:
        own, theirs = ([each[key] for each in side] for side in (values, usual))
        if key != "name" and (own != theirs or any(each != own[0] for each in own)):
            rows.append((key, *map(_beside, own, theirs)))
    what = " and ".join(dict.fromkeys(names)) + (" or between the runs" if len(runs) > 1 else "")
    every = [(key, *(shortened(f"{each[key]!r}") for each in values)) for key in values[0]]
    return (
        pages.paragraph(f"What differs from {what}:{'' if rows else ' nothing.'}")
        + (pages.table(rows, head) if rows else "")
        + pages.details("All keys", pages.table(every, head))
    )


def _beside(value: Any, usual: Any) -> str:
    """A value, with the preset's where that is another."""
    said = shortened(f"{value!r}")
    return said if value == usual else f"{said} (preset: {shortened(f'{usual!r}')})"


def _preset(config: ConfigDict) -> tuple[Mapping[str, Any], str]:
    """The values of the preset that a config is named after, and what they are; or the defaults."""
    name = config.name.replace("-", ":", 1)
    try:
        if name.partition(":")[0] in presets.names():
            return flat(presets.load(name)), f"the preset {name}"
    except UserError:  # a variant that is no more
        pass
    return flat(default()), "the defaults"
