"""Intermediate matching: from the configuration of a match to its term in the loss."""
