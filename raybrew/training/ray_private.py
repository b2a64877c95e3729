"""The private interfaces of Ray that raybrew uses: all of them are here.

They may change with any version of Ray. pyproject allows those that the tests ran with.
"""

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import grpc
import ray
from ray._private import ray_constants
from ray._private.internal_api import get_memory_info_reply, get_state_from_address
from ray._private.services import canonicalize_bootstrap_address
from ray.train import ScalingConfig

logger = logging.getLogger(__name__)


def bootstrap_address(address: str | None) -> str | None:
    """Return the host:port that `ray.init` would connect to; None if it would start a Ray.

    Args:
        address: as in RAY_ADDRESS; without one, the cluster that `ray start` left a note of counts.
    """
    given: Any = address
    return canonicalize_bootstrap_address(given)


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Give a Ray that is started here the loopback address: no other node can join it.

    Ray does so itself on Windows and macOS. Otherwise its dashboard's metrics listen to the
    network, whatever `dashboard_host` says.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def spilled_objects(timeout_s: float) -> int | None:
    """Return how many objects the cluster's object stores have put on disk, ever.

    None if no node says so in time. Ray tells it to its dashboard and to `ray memory`; this is what
    the latter calls.
    """
    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    try:
        reply = get_memory_info_reply(state, timeout_seconds=timeout_s)
    except grpc.RpcError as error:
        logger.info("no node says what its object store has put on disk: %s", error)
        return None
    return int(reply.store_stats.spilled_objects_total)


def worker_resources(scaling: ScalingConfig) -> dict[str, float]:
    """Return the resources of each worker, with Ray Train's defaults filled in."""
    resources: Any = scaling._resources_per_worker_not_none
    return dict(resources)


def root_error(error: Exception) -> Exception:
    """Return what Ray Train wrapped: what a rank raised, or why it can't be reached."""
    for name in ("_base_exc", "health_check_failure"):
        error = getattr(error, name, error)
    return error
