"""Files: what the operating system refuses and what to do about it, memory maps.

JSON that every reader takes.
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

# What the operating system refuses, which is no fault of the file: the limit, and what to do.
#
# A file that can't be opened or mapped may be whole, so nobody may take it for damaged or for gone.

_PERMISSION = "give this user the right to, or choose another folder"
_SPACE = "make room, or choose a folder on another disk"
_DEVICE = "see to the disk or the network share, then run again"
_ADVICE = {
    errno.ENOMEM: "this process has as many memory maps as it may (sysctl vm.max_map_count; each "
    "open file of labels takes one), as much address space (ulimit -v), or no memory is left: "
    "raise the limit",
    errno.EMFILE: "this process has as many files open as it may: raise ulimit -n",
    errno.ENFILE: "this machine has as many files open as it may: raise sysctl fs.file-max",
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: "it is mounted to be read only: choose another folder",
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
    """Map a file into memory; what Arrow then finds wrong with it are its bytes.

    Raises:
        OSError: the system refuses, with its number in any case.
    """
    try:
        return pa.memory_map(str(path))
    except OSError as error:
        if error.errno is not None:
            raise
        # Where the map is refused, and not the file, Arrow gives the system's words alone.
        number = next((n for n in errno.errorcode if str(error).endswith(os.strerror(n))), None)
        raise OSError(number or errno.EIO, str(error), str(path)) from error


# JSON as every reader takes it: RFC 8259 has no word for numbers that aren't finite.
#
# nan  inf  -inf   ──►   "nan"  "inf"  "-inf", texts that `float()` reads


def to_json(
    value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None
) -> str:
    """Return values as JSON.

    Args:
        value: mappings, lists, texts, numbers also of NumPy, truth values, None.
        indent: spaces of a level; all in one line if left out.
        default: makes one of those of anything else.
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
