"""The operations of an augmentation by name, in the order in which they are made. The schema reads
this file, so it imports no JAX."""

OPERATIONS = ("flip_x", "flip_y", "scale", "rotate", "stretch", "move")
