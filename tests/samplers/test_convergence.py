"""The order of every fast solver, against exact flows in float64 (by `convergence.py`, a process
of its own)."""

import json

import numpy as np
import pytest

from tests.samplers.convergence import DETERMINISTIC, NUM_STEPS, PROCESSES, STOCHASTIC

ORDERS = {
    "euler": 1,
    "ddim": 1,
    "dpmpp-2": 2,
    "dpmpp-3": 3,  # which is UniP-3
    "unipc-2": 3,  # the corrector adds an order (Zhao et al. 2023, theorem 3.1)
    "unipc-3": 4,
    "heun": 2,
}
WEAK_ORDERS = {
    "ddim": 1,
    "ddim-half": 1,
    "sde-dpmpp-1": 1,
    "sde-dpmpp-1-half": 1,
    "sde-dpmpp-2": 2,
    "sde-dpmpp-2-half": 2,
    "heun": 2,
    "ancestral": 1,
    "reverse_diffusion": 1,
    "euler_maruyama": 1,
}


@pytest.fixture(scope="module")
def found(run_python):
    code = "import runpy; runpy.run_module('tests.samplers.convergence', run_name='__main__')"
    return json.loads(run_python(code, env={"JAX_ENABLE_X64": "1"}).stdout)


def slope(errors):
    """The order over the whole range of steps."""
    return np.log(errors[0] / errors[-1]) / np.log(NUM_STEPS[-1] / NUM_STEPS[0])


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_the_error_falls_with_the_order(found, solver, process, data):
    """Over 40 to 160 steps (NFE 40 to 160; Heun's 80 to 320), the lower-order finish off."""
    row = found["errors"][f"{process}/{solver}"]
    assert row["nfe"] == [(2 if solver == "heun" else 1) * num for num in NUM_STEPS]
    assert slope(row[data]) > ORDERS[solver] - 0.3, row[data]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("solver", STOCHASTIC)
def test_the_weak_order_of_stochastic_solvers(found, solver, process):
    """On a Gaussian and by exact moments. The mean of a run that starts at the right one is exact
    where steps are linear in x and D, as D of a state on the mean's path is the data's mean at all
    times; Euler's and the chain's reversal know no D."""
    row = found["weak"][f"{process}/{solver}"]
    if solver in ("reverse_diffusion", "euler_maruyama") and process != "ve":
        assert slope(row["mean"]) > WEAK_ORDERS[solver] - 0.3, row["mean"]
    else:
        assert max(row["mean"]) < 1e-12
    assert slope(row["variance"]) > WEAK_ORDERS[solver] - 0.3, row["variance"]
