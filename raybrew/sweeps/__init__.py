"""Sweeps: many students on the labels of the same teachers, by Ray Tune.

space       what trials differ in, and the jobs they make, checked before the first
settings    Tune's settings: metric, scheduler, searcher
trial       what trials share, and one trial: in its own process, or a `TorchTrainer` inside it
search      the trials as Tune runs them, and their trackers
results     a row for each trial, tables; charts: the HTML report
sweep       all of it, in order
"""
