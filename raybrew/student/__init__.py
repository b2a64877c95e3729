"""The student: step, loop, checkpoints, and Ray Train around them."""
