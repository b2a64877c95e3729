"""metrics.jsonl: the figures of a run as lines of JSON, whoever else follows it.

One JSON object a line, flushed as it is written:

    {"step": 10, "time": 1764000000.0, "train/mr/loss": 0.69, "train/mr/kd": "nan"}
    {"time": 1764000009.0, "summary": {"eval/mr/accuracy": 0.81}}

`time` is in seconds since 1970. JSON has no word for numbers that aren't finite: they are the
strings "nan", "inf" and "-inf", which `float()` reads. A resumed run goes on in the same file,
without the line that a crash may have torn; where a step comes twice, the later line holds.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybrew.json_text import to_json

__all__ = ["MetricsFile", "without_secrets"]

_log = logging.getLogger(__name__)

_SECRET_KEY = re.compile(
    r"^token$|(?:^|_)(?:secret|password|passwd|credentials?|secret_key"
    r"|(?:api|access|private|account)_?key|(?:auth|access|hf|bearer)_token)$",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


class MetricsFile:
    """Appends records to a file of JSON lines."""

    def __init__(self, path: Path):
        _drop_torn_line(path)
        self._stream = path.open("a", encoding="utf-8")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append figures of a step."""
        self._write({"step": step, "time": time.time(), **values})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Append the run's final figures."""
        self._write({"time": time.time(), "summary": dict(values)})

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._stream.write(to_json(record) + "\n")
        self._stream.flush()


def without_secrets(value: Any) -> Any:
    """Return the job with passwords and keys masked, also in the user part of addresses."""
    if isinstance(value, Mapping):
        return {
            key: "***" if _SECRET_KEY.search(str(key)) else without_secrets(each)
            for key, each in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [without_secrets(each) for each in value]
    return _USER_INFO.sub("***@", value) if isinstance(value, str) else value


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        _log.warning("%s: dropped a last line that was torn (%d bytes)", path, len(data) - whole)
        os.truncate(path, whole)
