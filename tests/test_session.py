"""A Ray that can't be had is a mistake of the set-up: one message that says where to look."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

STARTING = """
from raybrew.cluster import ray_session
from raybrew.errors import ConfigError

try:
    with ray_session():
        print("session")
except ConfigError as error:
    print(error)
"""


@pytest.mark.ray
def test_files_of_ray_in_too_deep_a_folder(tmp_path: Path):
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STARTING],
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(deep)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "session\n" not in done.stdout
    assert "path length" in done.stdout
    assert "RAY_TMPDIR" in done.stdout
    assert "Traceback" not in done.stderr
