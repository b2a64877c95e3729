"""The command line in the test's own process."""

import sys

import pytest

from raybrew import cli


def raybrew(*arguments: str) -> int:
    """Run a command; return its exit code."""
    sys.argv = ["raybrew", *arguments]
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code
