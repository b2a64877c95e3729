"""What an operating system refuses, for a child process: real limits, and a user without rights."""

import ctypes
import mmap
import multiprocessing
import os
import resource
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MAX_MAPS = int(Path("/proc/sys/vm/max_map_count").read_text())
limited_maps = pytest.mark.skipif(MAX_MAPS > 1 << 20, reason="maps without number take memory")
FORK = multiprocessing.get_context("fork")
UNPRIVILEGED = 65534
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def in_child(work: Callable[[], Any]) -> Any:
    """Return what this returns in a forked process; fail where it raises."""
    here, there = FORK.Pipe(duplex=False)

    def run() -> None:
        try:
            result = work(), None
        except BaseException:
            result = None, traceback.format_exc()
        there.send(result)

    child = FORK.Process(target=run)
    child.start()
    there.close()
    try:
        result, failure = here.recv()
    finally:
        child.join()
    assert failure is None, failure
    return result


class FewMaps:
    """As many memory maps as a process may have, but for some; a context manager."""

    def __init__(self, left: int):
        self.left = left

    def __enter__(self) -> None:
        page = mmap.PAGESIZE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.nbytes = 2 * MAX_MAPS * page
        self.start = _libc.mmap(None, self.nbytes, mmap.PROT_READ, flags, -1, 0)
        # Neighbouring pages of unlike protection are maps of their own.
        both = mmap.PROT_READ | mmap.PROT_WRITE
        places = range(self.start, self.start + self.nbytes, 2 * page)
        made = [p for p in places if _libc.mprotect(p, page, both) == 0]
        assert len(made) < MAX_MAPS
        for place in made[len(made) - self.left // 2 :]:
            _libc.mprotect(place, page, mmap.PROT_READ)

    def __exit__(self, *_: object) -> None:
        _libc.munmap(ctypes.c_void_p(self.start), ctypes.c_size_t(self.nbytes))


def limit_address_space(more: int) -> None:
    """Let the process map so many bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * mmap.PAGESIZE + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def limit_files() -> None:
    """Let the process open no file more."""
    with open(os.devnull) as file:
        free = file.fileno()  # the lowest number that isn't taken
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (free, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    )


def drop_privileges(folder: Path) -> None:
    """Go into a folder as a user whom the modes of files stop, as they don't stop root."""
    os.chdir(folder)  # what lies above it needs no rights then
    if os.geteuid() == 0:
        os.setgid(UNPRIVILEGED)
        os.setuid(UNPRIVILEGED)
