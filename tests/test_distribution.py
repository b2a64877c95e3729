"""What `make dist` puts into the wheel and the sdist; nothing is fetched for it."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.structure import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


def test_the_wheel_has_the_package_its_data_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "raybrew").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == package
    assert any(name.endswith(".j2") for name in package)
    assert "raybrew/py.typed" in package
    entries = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith("entry_points.txt")))
    assert b"raybrew = raybrew.cli:main" in entries
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_has_what_builds_and_tests_the_package_and_no_caches(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames()}
    assert tops >= {"raybrew", "tests", "docs", "LICENSE", "pyproject.toml", "README.md"}
    assert not tops & {".cache", "site", ".venv", ".venv-docs", "runs", "cache"}
