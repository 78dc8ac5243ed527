"""The feed: the rows that each step asks for, from any step on, spread over the devices."""

import numpy as np

from score_sde.training.data_order import batch_indices
from score_sde.training.feed import in_memory

CODE = """
import itertools
import jax, numpy as np
from score_sde.training.data_order import batch_indices
from score_sde.training.feed import in_memory
from score_sde.training.mesh import along_data, data_mesh
mesh = data_mesh()
assert mesh.size == 4
"""
