"""Sweeps: many students on the labels of the same teachers, by Ray Tune.

space, ranges, domains    what trials differ in, checked before the first
survey, brief             data encoded once, labels that any trial may ask for
trial, several            one worker in the trial's process, or a `TorchTrainer` inside
searching, following      Tune, and who follows the trials
results, study, figures, page   the table and the report
sweep                     all of it, in order
"""
