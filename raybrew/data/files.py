"""Files: what the operating system refuses and what to do about it, memory maps, JSON.

A file that can't be opened or mapped may be whole: such a refusal never counts as damage, nor as a
missing file.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

_PERMISSION = "give this user the right to, or choose another folder"
_SPACE = "make room, or choose a folder on another disk"
_DEVICE = "check the disk or the network share, then run again"
_ADVICE = {
    errno.ENOMEM: "this process has as many memory maps as it may (sysctl vm.max_map_count; each "
    "open file of labels takes one), as much address space (ulimit -v), or no memory is left: "
    "raise the limit",
    errno.EMFILE: "this process has as many files open as it may: raise ulimit -n",
    errno.ENFILE: "this machine has as many files open as it may: raise sysctl fs.file-max",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "it is mounted read-only: choose another folder",
    errno.ENOSPC: _SPACE,
    errno.EDQUOT: _SPACE,
    errno.EFBIG: "raise the greatest size of a file (ulimit -f), or choose another file system",
    errno.EIO: _DEVICE,
    errno.ESTALE: _DEVICE,
    errno.ETIMEDOUT: _DEVICE,
}


def explain(error: OSError) -> str:
    """Return what the system refused, and what to do about it."""
    advice = _ADVICE.get(error.errno or 0)
    return f"{error}; {advice}" if advice else str(error)


def map_file(path: Path) -> pa.MemoryMappedFile:
    """Map a file into memory; whatever Arrow finds wrong with it afterwards is its bytes.

    Raises:
        OSError: the system refuses; `errno` is always set.
    """
    try:
        return pa.memory_map(str(path))
    except OSError as error:
        if error.errno is not None:
            raise
        # Where mmap fails rather than open, Arrow's error has the system's message and no number.
        number = next((n for n in errno.errorcode if str(error).endswith(os.strerror(n))), None)
        raise OSError(number or errno.EIO, str(error), str(path)) from error


def to_json(
    value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """Return values as JSON that every reader takes; RFC 8259 has no nan and no infinity.

    nan, inf and -inf become the texts "nan", "inf" and "-inf", which `float()` reads.

    Args:
        value: mappings, lists, texts, numbers (also NumPy's), truth values, None.
        indent: spaces of a level; all in one line if left out.
        default: turns anything else into one of those.
    """
    plain = _plain(value)
    return json.dumps(plain, indent=indent, default=default, allow_nan=False, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
