"""The published textbrewer package, whose numbers are to be met."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from textbrewer import losses as textbrewer_losses
    from textbrewer.configurations import DistillationConfig as TextBrewerDistillationConfig
    from textbrewer.configurations import IntermediateMatch

__all__ = ["IntermediateMatch", "TextBrewerDistillationConfig", "textbrewer_losses"]
