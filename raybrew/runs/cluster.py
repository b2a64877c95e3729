"""The Ray cluster of a run: the one that exists, or one of its own; what a job asks of it."""

import contextlib
import logging
import math
import os
import re
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayTaskError
from ray.train import RunConfig, ScalingConfig
from ray.train.constants import DEFAULT_STORAGE_PATH

from raybrew.config.section import try_to_write
from raybrew.errors import ConfigError, RaybrewError, Terminated
from raybrew.models.devices import check_device, device_for
from raybrew.runs.folder import RunFolder
from raybrew.runs.ray_config import NOTHING_TO_RESUME, RUNS
from raybrew.training.ray_private import bootstrap_address, loopback_only, worker_resources

if TYPE_CHECKING:  # slow to import, and needed by sweeps alone
    from ray import tune

Resources = Mapping[str, float]

_RAYS_NAME = re.compile(r"ray_train_run-[\d_-]+")
"""What Ray Train's RunConfig calls a run without a name."""
CONNECT_S = 10.0
"""How long a cluster may take to answer at its address; RAYBREW_RAY_CONNECT_S sets another time."""
RETRY_S = 0.5
PROBE_S = 120.0
"""How long a GPU that something else is using is waited for before it is checked."""

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or start Ray here and end it afterwards.

    A Ray that is connected already is used and left as it is.

    Raises:
        ConfigError: no Ray can be reached or started.
    """
    if ray.is_initialized():
        yield
        return
    # Bars and results are the run's output; Ray's own lines stay in its log files.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    exists = check_ray_address()
    if not exists:
        _token_without_home()
    try:
        with contextlib.nullcontext() if exists else loopback_only():
            ray.init(
                logging_level=logging.ERROR,
                log_to_driver=os.environ.get("RAY_LOG_TO_DRIVER", "").lower() in ("1", "true"),
                include_dashboard=False,
                dashboard_host="127.0.0.1",
                namespace="raybrew",
            )
    # Ray raises a plain Exception for a node that isn't up in time, others for sockets and gRPC.
    # Not tried again here: what it started stays until this process ends.
    except Exception as error:
        raise ConfigError(
            f"Ray: it can't be reached or started: {error}. A cluster is reached by RAY_ADDRESS "
            f"({os.environ.get('RAY_ADDRESS', 'not set')}); without it one is started here, with "
            "its files in RAY_TMPDIR or the folder for temporary files, whose path must be short. "
            "Where it timed out on a busy machine, run the same again"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM into the interrupt of Ctrl-C, on which Ray Train and everything else ends.

    On another thread than the main one, which alone can handle signals, it does nothing.

    Raises:
        Terminated: in place of the KeyboardInterrupt.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def interrupt(number: int, frame: Any) -> None:
        nonlocal came
        came = True
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt as error:
        if came and not isinstance(error, Terminated):
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def check_ray_address() -> bool:
    """Check that the cluster that is to be used answers at all, which Ray tries for minutes.

    Returns:
        False where Ray is to be started here, so that there is nothing to check.

    Raises:
        ConfigError: its address is invalid, or nothing answers there within `CONNECT_S`.
    """
    if ray.is_initialized():
        return True
    given = os.environ.get("RAY_ADDRESS", "")
    try:
        # Also the cluster that `ray start` has left a note of.
        parts = urlsplit(f"//{given.partition('://')[2] or bootstrap_address(given or None) or ''}")
        host, port = parts.hostname, parts.port
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"RAY_ADDRESS: expected host:port, ray://host:port, auto or local, got {given!r}: "
            f"{error}"
        ) from error
    if host is None:
        return False
    if port is None:  # Ray knows it from the scheme
        return True
    seconds = _connect_seconds()
    if refused := _refused(host, port, seconds):
        source = f"RAY_ADDRESS={given}" if given else "the last `ray start` on this machine"
        raise ConfigError(
            f"Ray: expected a cluster at {host}:{port} ({source}), got no answer in {seconds:g} s: "
            f"{refused}. Start it, correct RAY_ADDRESS, set RAY_ADDRESS=local for a Ray of the "
            "run's own, or wait for longer by RAYBREW_RAY_CONNECT_S"
        )
    return True


def _token_without_home() -> None:
    """Give a Ray that is started here a token where it can't keep one in the home, as it does."""
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return
    try:
        folder = Path.home() / ".ray"
        if not (folder / "auth_token").exists():
            try_to_write(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        os.environ["RAY_AUTH_TOKEN"] = uuid.uuid4().hex
        logger.info("Ray's token is kept for this run alone, as ~/.ray can't be written: %s", error)


def _refused(host: str, port: int, seconds: float) -> OSError | None:
    """Try to connect until the time is over; return what was in the way, if anything was."""
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), max(end - time.monotonic(), 0.1)).close()
        except OSError as error:
            if time.monotonic() + RETRY_S >= end:
                return error
            time.sleep(RETRY_S)
        else:
            return None


def _connect_seconds() -> float:
    given = os.environ.get("RAYBREW_RAY_CONNECT_S")
    try:
        seconds = CONNECT_S if given is None else float(given)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"RAYBREW_RAY_CONNECT_S: expected seconds, got {given!r}")
    return seconds


def default_teacher_resources() -> dict[str, float]:
    """Return the resources of a teacher's replica where the job names none."""
    gpus = any(node["Alive"] and node["Resources"].get("GPU", 0) >= 1 for node in ray.nodes())
    return {"CPU": 1.0, "GPU": 1.0} if gpus else {"CPU": 1.0}


def check_devices(teachers: Sequence[tuple[str, Resources]], scaling: ScalingConfig) -> None:
    """Check that PyTorch can use the GPUs that teachers and workers ask for, where Ray puts them.

    Before any model is loaded. Replicas and workers check it again: nodes may differ.

    Args:
        teachers: name and resources of each replica.
        scaling: the student's workers, Ray Train's own.

    Raises:
        ConfigError: PyTorch can't use one; names what asks for it, and what to change.
    """
    probes: dict[str, tuple[Resources, str]] = {
        f"teacher {name!r}": (need, f"teachers[{name}].resources to {{CPU: 1}}")
        for name, need in teachers
    }
    probes["a student worker"] = (worker_resources(scaling), "scaling.use_gpu to false")
    remote: Any = ray.remote(_probe)
    running = [
        remote.options(
            num_cpus=0,
            num_gpus=need["GPU"],
            resources={k: v for k, v in need.items() if k not in ("CPU", "GPU", "memory")},
        ).remote(who, setting)
        for who, (need, setting) in probes.items()
        if need.get("GPU", 0) > 0
    ]
    if not running:
        return
    done, late = ray.wait(running, num_returns=len(running), timeout=PROBE_S)
    for each in late:
        logger.warning("a GPU is still in use after %.0f s: not checked", PROBE_S)
        ray.cancel(each)
    try:
        ray.get(done)
    except RayTaskError as error:
        if isinstance(error.cause, RaybrewError):
            raise error.cause from None
        raise


def _probe(who: str, setting: str) -> None:
    check_device(device_for(1), who, setting)


def check_resources(
    teachers: Sequence[tuple[str, Resources]], scaling: ScalingConfig, *, together: bool
) -> None:
    """Refuse a job that the cluster can't hold, before anything waits for resources.

    Args:
        teachers: name and resources of each replica.
        scaling: the student's workers, Ray Train's own.
        together: whether teachers and workers run at the same time.

    Raises:
        ConfigError: names what is needed, for what, and what the cluster has.
    """
    worker = worker_resources(scaling)
    needs = [(f"teacher {name!r}", dict(need)) for name, need in teachers]
    needs += [("a student worker", worker)] * scaling.min_workers
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for who, need in needs:
        if not any(all(node.get(k, 0) >= v for k, v in need.items()) for node in nodes):
            raise ConfigError(
                f"resources: {who} needs {_text(need)} on one node; the cluster's nodes have "
                f"{'; '.join(_text(_own(node)) for node in nodes)}. Ask for less (resources of "
                "teachers, resources_per_worker and use_gpu of scaling), or use a larger cluster"
            )
    of_teachers = _sum([need for _, need in teachers])
    of_workers = _sum([worker] * scaling.min_workers)
    has = _sum(nodes)
    for name in sorted({*of_teachers, *of_workers}):
        parts = of_teachers.get(name, 0), of_workers.get(name, 0)
        need = sum(parts) if together else max(parts)
        if need > has.get(name, 0) + 1e-9:
            raise ConfigError(
                f"resources: the job needs {need:g} {name} at the same time (teachers "
                f"{parts[0]:g}, student workers {parts[1]:g}), the cluster has "
                f"{has.get(name, 0):g}. Ask for fewer replicas or workers or a fraction each "
                f"(resources: {{{name}: 0.5}}), or compute the labels before training "
                "(labels.when: ahead), which frees the teachers"
            )


def _sum(bundles: Sequence[Resources]) -> dict[str, float]:
    names = {name for bundle in bundles for name in bundle}
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in names}


def _own(node: Resources) -> dict[str, float]:
    hidden = ("node:", "memory", "object_store_memory")
    return {"GPU": 0.0} | {k: v for k, v in node.items() if not k.startswith(hidden)}


def _text(resources: Resources) -> str:
    return ", ".join(f"{value:g} {name}" for name, value in sorted(resources.items())) or "nothing"


def run_folder(config: "RunConfig | tune.RunConfig", *, resume: bool) -> RunFolder:
    """Return the folder of a run that Ray's RunConfig, Train's or Tune's, names.

    Where it names no storage path, that is `./runs`, as it is for the command line.

    Raises:
        ConfigError: it isn't on a disk, or has no name of a run to resume.
    """
    if config.storage_filesystem is not None:
        raise ConfigError(
            "run.storage_filesystem: expected none, as a run is in a folder that every node sees "
            f"(a disk, NFS), got {type(config.storage_filesystem).__name__}"
        )
    if resume and not config.name:
        raise ConfigError(NOTHING_TO_RESUME)
    # Ray fills in a folder of its own, `~/ray_results`.
    given = RUNS if config.storage_path == DEFAULT_STORAGE_PATH else config.storage_path
    folder = RunFolder(str(given), str(config.name))
    if resume and _RAYS_NAME.fullmatch(str(config.name)) and not folder.path.is_dir():
        raise ConfigError(f"{NOTHING_TO_RESUME} (Ray makes up {config.name})")
    return folder
