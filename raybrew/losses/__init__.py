"""Losses as pure functions of tensors; nothing here knows of models, jobs or labels on disk.

kd, hard          losses on logits and on true labels, one value per row
mixture           weights of several teachers, and their combined target
schedules         of the weights of terms, and of temperatures
hidden, relations, match_loss    losses on features: what a teacher ships, what is compared
registry, numerics               methods by name and their options; log space, masks, top-k
"""
