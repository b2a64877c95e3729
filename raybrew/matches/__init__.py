"""Intermediate matching: from the configuration of a match to its term in the loss.

config, sizes of the models ──► plan ──► TaskMatch
teacher's features ──► capture ──► payload ─ ─ store ─ ─► plan.MatchTerm ◄── student's, projected
"""
