"""Training: the state, the pure step over a mesh, averages, checkpoints, the loop around them."""
