"""The published textbrewer package, whose numbers are to be met."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
