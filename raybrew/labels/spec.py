"""Where labels are kept and how many of them: what every process of a run has to know."""

import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from raybrew.paths import is_uri, user_path

if TYPE_CHECKING:
    from raybrew.config import LabelConfig

__all__ = ["StoreSpec"]


@dataclass(frozen=True)
class StoreSpec:
    """A label store; survives pickling.

    Args:
        root: a folder, or a URI that `pyarrow.fs.FileSystem.from_uri` reads.
        cache: folder that keeps what was read of a remote store.
        max_bytes: how large a local store may grow; None for any size.
        cache_max_bytes: how large the folder of the cache may grow; None for any size.
        on_full: what to do with labels that there is no room for.
        since: when the run began, seconds since 1970; what was used since is never evicted.
    """

    root: str
    cache: str = "~/.cache/raybrew/remote-labels"
    max_bytes: int | None = None
    cache_max_bytes: int | None = None
    on_full: Literal["stop", "go_on"] = "stop"
    since: float = field(default_factory=time.time)

    @staticmethod
    def of(labels: "LabelConfig") -> "StoreSpec":
        """Return what a job says of its store, for a run that begins now."""
        root = labels.store
        if not is_uri(root):
            root = os.path.abspath(user_path(root, "labels.store"))
        return StoreSpec(
            root=root,
            cache=os.path.abspath(user_path(labels.cache, "labels.cache")),
            max_bytes=labels.max_bytes,
            cache_max_bytes=labels.cache_max_bytes,
            on_full=labels.on_full,
        )
