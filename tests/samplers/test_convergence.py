"""The orders in ``SAMPLER_CASES``, against exact flows in float64 (by `convergence.py`)."""

import functools

import jax
import numpy as np
import pytest

from tests.cases import EVERY, FIRST, LATER, SAMPLER_CASES
from tests.commands import as_users_have_it
from tests.samplers.convergence import NUM_STEPS, errors, weak_errors

ORDERS = {name: case.order for name, case in SAMPLER_CASES.items() if case.order}
WEAK_ORDERS = {name: case.weak_order for name, case in SAMPLER_CASES.items() if case.weak_order}


@pytest.fixture(scope="module")
def measured():
    @functools.cache
    def of(names):
        with as_users_have_it(), jax.enable_x64(True):
            return {"errors": errors(names), "weak": weak_errors(names)}

    return of


@pytest.fixture
def found(measured, process):
    return measured(tuple(LATER if process in LATER else FIRST))


def slope(row):
    """The order over the whole range of steps."""
    return np.log(row[0] / row[-1]) / np.log(NUM_STEPS[-1] / NUM_STEPS[0])


@pytest.mark.thorough
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("solver", ORDERS)
def test_the_error_falls_with_the_order(found, solver, process, data):
    """Over 40 to 160 steps (NFE 40 to 160; Heun's 80 to 320), the lower-order finish off."""
    row = found["errors"][f"{process}/{solver}"]
    assert row["nfe"] == [(2 if solver == "heun" else 1) * num for num in NUM_STEPS]
    # DEIS begins by steps of lower order. Where much of the data is left at T they show, as the
    # learned schedule's alpha(T) is 0.08: its order falls from 2.5 to 2.2 at 640 steps.
    order = 2 if (solver, process) == ("deis", "learned") else ORDERS[solver]
    assert slope(row[data]) > order - 0.3, row[data]


@pytest.mark.thorough
@pytest.mark.parametrize("process", EVERY)
@pytest.mark.parametrize("solver", WEAK_ORDERS)
def test_the_weak_order_of_stochastic_solvers(found, solver, process):
    """On a Gaussian and by exact moments. The mean of a run that starts at the right one is exact
    where steps are linear in x and D, as D of a state on the mean's path is the data's mean at all
    times; Euler's and the chain's reversal know no D. Euler's is exact where that path is straight
    in t."""
    row = found["weak"][f"{process}/{solver}"]
    straight = process in ("ve", "edm") or (solver, process) == ("pc", "flow")
    if solver in ("reverse_diffusion", "pc") and not straight:
        assert slope(row["mean"]) > WEAK_ORDERS[solver] - 0.3, row["mean"]
    else:
        assert max(row["mean"]) < 1e-12
    assert slope(row["variance"]) > WEAK_ORDERS[solver] - 0.3, row["variance"]
