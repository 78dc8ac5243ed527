import numpy as np
import pytest

from score_sde.data.streamed import batch_indices


@pytest.mark.parametrize("batch_size, num_examples", [(4, 10), (5, 10), (10, 10), (25, 10)])
def test_every_epoch_is_a_permutation(batch_size, num_examples):
    steps = 3 * num_examples // batch_size + 1
    stream = np.concatenate([batch_indices(7, s, batch_size, num_examples) for s in range(steps)])
    assert stream.dtype == np.int32
    epochs = [stream[e * num_examples :][:num_examples] for e in range(3)]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))
    assert not np.array_equal(epochs[0], epochs[1])


def test_it_is_a_function_of_seed_and_step():
    np.testing.assert_array_equal(batch_indices(1, 30, 8, 100), batch_indices(1, 30, 8, 100))
    assert not np.array_equal(batch_indices(1, 30, 8, 100), batch_indices(2, 30, 8, 100))
