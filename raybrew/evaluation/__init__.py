"""Evaluation: predictions and metrics of a model, of stored teachers, of saved models."""
