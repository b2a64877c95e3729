"""What the operating system refuses, which is no fault of the file: the limit, and what to do.

A file that can't be opened or mapped may be whole, so nobody may take it for damaged or for gone.
"""

import errno
import os
from pathlib import Path

import pyarrow as pa

__all__ = ["explain", "map_file"]

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
