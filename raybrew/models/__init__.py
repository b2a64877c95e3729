"""Models: students, adaptors, projections, hooks, parameter tables."""
