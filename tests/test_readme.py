"""The README's Python, as it stands there."""

import re

import numpy as np

import score_sde
from tests.commands import ROOT


def test_the_parts_work_alone_as_the_readme_says():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    assert len(blocks) == 4 and "score_sde.load(" in blocks[0]  # which wants a trained run
    names: dict = {}
    for block in blocks[1:]:
        exec(compile(block, "README.md", "exec"), names)
    assert names["drawn"].x.shape == (1000, 2) and len(names["drawn"].trajectory) == 20
    # What it says of both: within 1e-3 nats a dimension, and the prior's own mismatch.
    error = {
        name: np.abs(names[name].log_prob - names["exact"]).max() for name in ("data", "model")
    }
    assert error["data"] < 2e-3 < error["model"] < 2e-2
    assert issubclass(names["Cosine"], score_sde.SDE)
    names["Cosine"]().check()
