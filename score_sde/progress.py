"""Progress bars of the place where they are shown. Only who shows one pays for the import."""

import sys
from typing import Any, TextIO

UP = "\x1b[A"


def bar(*, quiet: bool = False, **settings: Any) -> Any:
    """A bar of tqdm with these settings. A terminal and a notebook draw it in place.

    Elsewhere, as in a file, each drawing is a line, every ten seconds; with `quiet` there is none.
    A notebook needs no ipywidgets, and keeps the last drawing alone when it is saved.
    """
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(dynamic_ncols=True, **settings)
    if in_notebook():
        return tqdm(file=_Output(), ncols=100, ascii=False, mininterval=0.5, **settings)
    if quiet:
        return tqdm(disable=True, **settings)
    words = "{desc}: step {n_fmt} of {total_fmt}, {elapsed} gone, {remaining} left{postfix}"
    return tqdm(file=_Lines(sys.stderr), mininterval=10, bar_format=words, **settings)


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    found = sys.modules.get("IPython")
    shell = found.get_ipython() if found else None
    return shell is not None and "IPKernelApp" in shell.config


class _Output:
    """An output of a notebook's cell, which each drawing replaces."""

    def __init__(self) -> None:
        from IPython.display import display

        self._handle: Any = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        if line := text.strip():
            self._handle.update({"text/plain": line}, raw=True)

    def flush(self) -> None:
        pass


class _Lines:
    """A bar redraws itself by carriage returns, and one within another moves the cursor up. In a
    file each drawing becomes a line."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> None:
        if line := text.replace(UP, "").strip():
            self._stream.write(line + "\n")

    def flush(self) -> None:
        self._stream.flush()
