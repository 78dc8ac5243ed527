"""Which noise goes with which data of a batch.

    independent  as they were drawn
    ot           by optimal transport within the batch: of all ways to pair them one by one the one
                 with the least sum of |x0 - z|^2 (Pooladian et al. 2023, arXiv:2304.14772; Tong et
                 al. 2023, arXiv:2302.00482)

The paths between such pairs cross less, so the flow is straighter and needs fewer steps. Noise and
data by themselves are distributed as before, but noise depends on data. So -E[z | x_t] / sigma is
no longer the score of x_t. Still alpha' E[x0 | x_t] + sigma' E[z | x_t] is the velocity of a flow
from the noise at T to the data, if x_T is the noise alone. That is what the samplers without noise
follow.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import Array


def transported(x0: Array, z: Array) -> Array:
    """The noise (B, *shape) in the order of the data (B, *shape) to which it is assigned.

    By the Hungarian algorithm, which is exact up to rounding in the arrays' dtype. It takes O(B^3),
    in steps of O(B) one after the other. Every device does it for the whole batch.
    """
    rows, columns = (each.reshape(len(each), -1) for each in (x0, z))
    # |x0 - z|^2 = |x0|^2 + |z|^2 - 2 x0 z, and the squares are in every pairing's sum.
    products = jnp.matmul(rows, columns.T, precision="highest")
    with jax.numpy_dtype_promotion("standard"):  # which optax expects
        of_data, of_noise = optax.assignment.hungarian_algorithm(-products)
    return z[of_noise[jnp.argsort(of_data)]]


PAIRINGS: dict[str, Callable[[Array, Array], Array]] = {
    "independent": lambda x0, z: z,
    "ot": transported,
}
"""(x0, z) -> z in another order."""
