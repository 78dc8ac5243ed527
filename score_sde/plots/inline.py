"""A figure as a part of a page of HTML, in the page's colours."""

import html
import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure

MOST_MARKS = 300  # of a cloud; more are drawn as pixels, which take fewer bytes
# Matplotlib's black, white and first blue as colours of the page, which has these variables.
COLOURS = {"#000000": "currentColor", "#ffffff": "var(--paper)", "#1f77b4": "var(--curve)"}


def svg(figure: Figure, name: str, label: str) -> str:
    """Return a figure as an SVG element, transparent and in the colours of the page.

    Args:
        figure: of matplotlib.
        name: another one for each figure of the page; the ids within depend on it.
        label: what is seen, for those who do not see it.
    """
    for axes in figure.axes:
        for cloud in axes.collections:
            if len(np.asarray(cloud.get_offsets())) > MOST_MARKS:
                cloud.set_rasterized(True)
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, dpi=150, metadata={"Date": None})
    text = file.getvalue()
    # Of the file: its head, and what names its groups, styles the whole page or chooses a font.
    _, _, text = text[text.index("<svg") :].partition(">")
    text = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace("xlink:href", "href")
    text = re.sub(r"font: ([\d.]+px) [^;\"]*|font-family: [^;\"]*; ", _size, text)
    text = re.sub(r"\s+", " ", text)
    for theirs, ours in COLOURS.items():
        text = text.replace(theirs, ours)
    width, height = (72 * side for side in figure.get_size_inches())
    head = f'viewBox="0 0 {width:g} {height:g}" style="width: {width:.0f}pt"'
    return f'<svg role="img" aria-label="{html.escape(label)}" {head}>{text.strip()}'


def _size(font: re.Match[str]) -> str:
    return f"font-size: {font[1]}" if font[1] else ""
