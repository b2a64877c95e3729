"""Where the metrics of a run are written. The only module that knows W&B and TensorBoard.

Tracker ─┬─ metrics.jsonl   always
         ├─ TensorBoard     config.tensorboard   <folder>/tensorboard
         └─ W&B             config.wandb         <folder>/wandb

W&B's settings come from the job, then from W&B's own variables (WANDB_PROJECT, WANDB_NAME,
WANDB_DIR, …), then from the defaults of this module.
"""

import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Protocol

from raybrew.config import TrackingConfig
from raybrew.data.files import to_json
from raybrew.errors import ConfigError

_log = logging.getLogger(__name__)

WANDB_PROJECT = "raybrew"
WANDB_INIT_TIMEOUT_S = 60
WANDB_FINISH_TIMEOUT_S = 120
_SECRET_KEY = re.compile(
    r"^token$|(?:^|_)(?:secret|password|passwd|credentials?|secret_key"
    r"|(?:api|access|private|account)_?key|(?:auth|access|hf|bearer)_token)$",
    re.IGNORECASE,
)
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")


class _Sink(Protocol):
    """One place that metrics are written to."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def summary(self, values: Mapping[str, Any]) -> None: ...

    def finish(self, exit_code: int) -> None: ...


class Tracker:
    """Writes a run's metrics to `metrics.jsonl`, and to W&B and TensorBoard where the job says so.

    A context manager; may be called from several threads.

    Args:
        folder: Folder of the run; created if it doesn't exist.
        config: What to write to.
        job_plain: The resolved job, as `to_plain` gives it; recorded without secrets.
        run_name: Name of the run where `config.run_name` is left out.
        on_lost: Called with a message when W&B is lost in the middle of the run.
        is_trial: Whether it is one run of several in this process, which can't all have the id
            and the name that W&B's variables give.

    Raises:
        ConfigError: W&B refuses the credentials or can't be reached, or TensorBoard is missing.
    """

    def __init__(
        self,
        folder: Path,
        config: TrackingConfig,
        job_plain: dict[str, Any],
        run_name: str,
        on_lost: Callable[[str], None] = _log.warning,
        *,
        is_trial: bool = False,
    ):
        folder = Path(folder).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        job = without_secrets(job_plain)
        self._lock = Lock()
        self._finished = False
        self._sinks: list[_Sink] = []
        with ExitStack() as undo:
            undo.callback(self.finish, 1)
            self._sinks.append(_MetricsFile(folder / "metrics.jsonl"))
            if config.tensorboard:
                self._sinks.append(_TensorBoard(folder / "tensorboard", job))
            mode = _wandb_mode() if config.wandb else "disabled"
            if mode != "disabled":
                of_one_run = {} if is_trial else os.environ
                options = {
                    "id": _run_id(folder / "wandb" / "run-id", of_one_run.get("WANDB_RUN_ID")),
                    "resume": of_one_run.get("WANDB_RESUME") or "allow",
                    "name": config.run_name or of_one_run.get("WANDB_NAME") or run_name,
                    "group": config.group,
                    "config": job,
                    "mode": mode,
                }
                self._sinks.append(_Wandb(folder, config.project, options, on_lost))
            undo.pop_all()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Record metrics of a step.

        Args:
            values: Numbers by metric key, such as `train/mr/loss`.
            step: Optimizer steps done so far.
        """
        numbers = {key: float(value) for key, value in values.items()}
        with self._lock:
            for sink in self._sinks:
                sink.log(numbers, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record the run's final metrics: numbers, texts or None."""
        with self._lock:
            for sink in self._sinks:
                sink.summary(values)

    def finish(self, exit_code: int = 0) -> None:
        """Close everything; a second call does nothing.

        Args:
            exit_code: 0 for a run that went well.
        """
        with self._lock:
            if not self._finished:
                self._finished = True
                for sink in self._sinks:
                    sink.finish(exit_code)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish(0 if kind is None else 1)


def check_tracking(config: TrackingConfig) -> None:
    """Refuse what a tracker would refuse, before a run starts.

    Raises:
        ConfigError: W&B refuses the credentials, or TensorBoard is missing.
    """
    if config.wandb:
        _wandb_mode()
    if config.tensorboard:
        _summary_writer()


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


class _MetricsFile:
    """metrics.jsonl: one JSON object a line, flushed as it is written.

        {"step": 10, "time": 1764000000.0, "train/mr/loss": 0.69, "train/mr/kd": "nan"}
        {"time": 1764000009.0, "summary": {"eval/mr/accuracy": 0.81}}

    `time` is in seconds since 1970. JSON has no numbers that aren't finite: they are the strings
    "nan", "inf" and "-inf", which `float()` reads. A resumed run appends to the same file, without
    a last line that a crash has torn; where a step comes twice, the later line holds.
    """

    def __init__(self, path: Path):
        _drop_torn_line(path)
        self._stream = path.open("a", encoding="utf-8")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Append metrics of a step."""
        self._write({"step": step, "time": time.time(), **values})

    def summary(self, values: Mapping[str, Any]) -> None:
        """Append the run's final metrics."""
        self._write({"time": time.time(), "summary": dict(values)})

    def finish(self, exit_code: int) -> None:
        """Close the file."""
        self._stream.close()

    def _write(self, record: dict[str, Any]) -> None:
        self._stream.write(to_json(record) + "\n")
        self._stream.flush()


def _drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        _log.warning("%s: dropped a last line that was torn (%d bytes)", path, len(data) - whole)
        os.truncate(path, whole)


class _TensorBoard:
    def __init__(self, folder: Path, job: dict[str, Any]):
        self._writer = _summary_writer()(str(folder))
        self._writer.add_text("job", f"```json\n{to_json(job, indent=2, default=str)}\n```")

    def log(self, values: Mapping[str, float], step: int) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        rows = "\n".join(f"| {key} | {value} |" for key, value in values.items())
        self._writer.add_text("summary", f"| metric | value |\n| --- | --- |\n{rows}")

    def finish(self, exit_code: int) -> None:
        self._writer.close()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "tracking.tensorboard: expected the package tensorboard, got none installed; "
            "pip install 'raybrew[tensorboard]', or leave the key out"
        ) from error
    return SummaryWriter


class _Wandb:
    def __init__(
        self,
        folder: Path,
        project: str | None,
        options: dict[str, Any],
        on_lost: Callable[[str], None],
    ):
        import wandb

        project = project or os.environ.get("WANDB_PROJECT") or WANDB_PROJECT
        self._lost, self._on_lost = False, on_lost
        try:
            self._run = wandb.init(
                **options,
                dir=os.environ.get("WANDB_DIR") or str(folder),
                project=project,
                reinit="create_new",  # a run that the caller has open stays open
                settings=_quiet_settings(),
            )
        except _wandb_errors() as error:
            raise ConfigError(
                f"tracking.wandb: expected to open a run in project {project!r}, got: "
                f"{error}; check the project and the key, or set WANDB_MODE=offline"
            ) from error
        # W&B drops values of a step below the last one seen; an axis of our own takes them all.
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        if options["mode"] == "offline":
            _log.info(
                "W&B is offline; send the run later: wandb sync %s", Path(self._run.dir).parent
            )
        else:
            _log.info("W&B: %s", self._run.url)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._try(lambda: self._run.log({"step": step, **values}))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._try(lambda: self._run.summary.update(dict(values)))

    def finish(self, exit_code: int) -> None:
        self._try(lambda: self._run.finish(exit_code=exit_code))

    def _try(self, call: Callable[[], None]) -> None:
        """Warn once and continue: a run doesn't end with W&B."""
        if self._lost:
            return
        try:
            call()
        except _wandb_errors() as error:
            self._lost = True
            self._on_lost(
                f"W&B failed ({type(error).__name__}: {error}); the run continues without it, "
                "metrics.jsonl has everything"
            )


def _wandb_mode() -> str:
    """Return WANDB_MODE or `online` where a key is found and holds, else `offline`."""
    mode = os.environ.get("WANDB_MODE", "").lower()
    if mode == "dryrun" or mode == "offline":
        return "offline"
    if mode == "disabled":
        _log.info("W&B is disabled by WANDB_MODE; metrics go to metrics.jsonl")
        return "disabled"
    import wandb

    try:
        wandb.setup(wandb.Settings(**_where_unset(silent=True)))
    except ValueError as error:
        raise ConfigError(
            "tracking.wandb: expected W&B to accept its variables (WANDB_MODE, WANDB_DIR, …), got: "
            f"{' '.join(str(error).split())}"
        ) from error
    try:
        found = wandb.login(verify=True, prompt=False)
    except wandb.Error as error:
        raise ConfigError(
            f"tracking.wandb: expected W&B to accept the key, got: {error}; run `wandb login`, or "
            "set WANDB_MODE=offline to send the run later"
        ) from error
    if not found:
        _log.info("W&B has no key (WANDB_API_KEY, `wandb login`)")
    return (mode or "online") if found else "offline"


def _quiet_settings() -> Any:
    import wandb

    return wandb.Settings(
        **_where_unset(
            silent=True,
            quiet=True,
            console="off",  # the terminal belongs to our progress bars
            disable_code=True,
            save_code=False,
            init_timeout=WANDB_INIT_TIMEOUT_S,
            finish_timeout=WANDB_FINISH_TIMEOUT_S,
        )
    )


def _where_unset(**settings: Any) -> dict[str, Any]:
    """Return the settings of W&B that no variable of the environment sets."""
    return {
        key: value for key, value in settings.items() if f"WANDB_{key.upper()}" not in os.environ
    }


def _wandb_errors() -> tuple[type[Exception], ...]:
    """Return what W&B raises when its service or server is lost; they share no base."""
    import wandb
    from wandb.sdk.lib.service.service_token import WandbServiceConnectionError
    from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

    return (
        wandb.Error,
        HandleAbandonedError,
        MailboxClosedError,
        WandbServiceConnectionError,
        OSError,
        RuntimeError,
    )


def _run_id(path: Path, given: str | None) -> str:
    """Return the folder's W&B id, the same when the run is resumed; the user's if `given`."""
    if given or not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(given or uuid.uuid4().hex[:8])
    return path.read_text().strip()
