"""Trains the student: batches, step, loop, checkpoints, and Ray Train around them."""
