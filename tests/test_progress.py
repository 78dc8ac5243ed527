"""Progress bars: lines in a file, nothing where quiet, one output in a notebook."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from score_sde.progress import bar


def run(**settings):
    with bar(total=3, desc="training", **settings) as shown:
        shown.update(3)


def test_elsewhere_each_drawing_is_a_line(capfd):
    run()
    first, last = capfd.readouterr().err.splitlines()
    assert first.startswith("training: step 0 of 3, ") and last.startswith("training: step 3 of 3")
    run(quiet=True)
    assert capfd.readouterr().err == ""


@pytest.fixture
def outputs(monkeypatch):
    """What a notebook's cell shows, by a stand-in for IPython."""
    found = []

    class Handle:
        def update(self, data, raw):
            found.append(data["text/plain"])

    def display(data, raw, display_id):
        found.append(data["text/plain"])
        return Handle()

    package, module = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: SimpleNamespace(config={"IPKernelApp": {}})
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return found


def test_in_a_notebook_one_output_is_drawn_again_and_again(outputs, capfd):
    run(quiet=True)
    assert outputs[0] == "" and outputs[1].startswith("training:   0%")
    assert outputs[-1].startswith("training: 100%|█") and "3/3" in outputs[-1]
    assert capfd.readouterr() == ("", "")
