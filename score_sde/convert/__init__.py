"""Checkpoints of other code bases in, ours out."""
