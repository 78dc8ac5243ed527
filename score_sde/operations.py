"""The operations of an augmentation by name, in the order in which they are made. Reading this file
imports no JAX, as the schema needs them."""

OPERATIONS = ("flip_x", "flip_y", "scale", "rotate", "stretch", "move")
