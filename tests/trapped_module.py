"""Importing it is an error: only a job file that names it may try."""

raise ImportError("this module was imported")
