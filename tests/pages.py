"""Pages of HTML, parsed and checked."""

import base64
import io
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

from PIL import Image

VOID = {"meta", "link", "img", "source", "br", "input"}


class Page(HTMLParser):
    """A page's elements in order, with the checks of form that every page must pass."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        assert text.startswith("<!DOCTYPE html>\n<html lang=")
        self.feed(text)
        self.close()
        assert not self.open
        self.check()

    def handle_starttag(self, tag, attrs):
        assert len(dict(attrs)) == len(attrs), f"an attribute twice: {tag} {attrs}"
        self.elements.append((tag, dict(attrs), len(self.texts)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), len(self.texts)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, *tags):
        return [attrs for tag, attrs, _ in self.elements if tag in tags]

    def headings(self):
        return [
            (tag, self.texts[at])
            for tag, _, at in self.elements
            if len(tag) == 2 and tag[0] == "h" and tag[1].isdecimal()
        ]

    @property
    def text(self):
        return "".join(self.texts)

    def check(self):
        levels = [int(tag[1]) for tag, _ in self.headings()]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(b <= a + 1 for a, b in pairwise(levels)), levels
        for attrs in self.all("img"):
            assert len(attrs["alt"]) > 10 and int(attrs["width"]) and int(attrs["height"])
        plots = [attrs for attrs in self.all("svg") if attrs["role"] == "img"]
        assert all(len(attrs["aria-label"]) > 10 for attrs in plots)
        assert len(self.all("figure")) == len(self.all("figcaption"))
        assert len(self.all("figure")) == len(self.all("img")) + len(plots)
        for _, attrs, _ in self.elements:
            for name, value in attrs.items():
                if name in ("src", "href", "srcset"):
                    assert value.startswith(("data:", "#")), value
                assert not name.startswith("on")  # no handler
        assert not self.all("script", "iframe", "object", "form", "base")
        ids = Counter(attrs["id"] for _, attrs, _ in self.elements if "id" in attrs)
        assert set(ids.values()) <= {1}
        links = {attrs["href"][1:] for attrs in self.all("use")}
        assert links <= ids.keys()


def page_of(folder):
    return Page((folder / "report.html").read_text())


def images_of(page):
    addresses = [attrs["src"].partition(",")[2] for attrs in page.all("img")]
    return [Image.open(io.BytesIO(base64.b64decode(address))) for address in addresses]
