"""Ray's own configs, built by Ray from a job file's `run:` and `scaling:`."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from raybrew.errors import ConfigError

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
LONGEST_NAME = 200
"""Bytes: file systems end at 255, and `raybrew label` appends to it."""
_APPENDED = re.compile(r"-label-\d{8}-\d{6}\Z")

Check = tuple[Callable[[Any], bool], str]


def check_ray_arguments(what: str, values: Mapping[str, Any]) -> None:
    """Refuse values that Ray takes as they are, and that would be found too late, or never.

    Args:
        what: the section, `run`, `scaling`, `run.failure_config` or `run.checkpoint_config`;
            nothing is known of others.
        values: its arguments, by name.

    Raises:
        ConfigError: names the argument, what was expected and what was got.
    """
    for name, value in values.items():
        good, expected = CHECKS.get(what, {}).get(name, ANY)
        if not good(value):
            raise ConfigError(f"{what}.{name}: expected {expected}, got {_shown(value)}")


def _shown(value: Any) -> str:
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != "" and "\0" not in value


def _is_name(value: Any) -> bool:
    return (
        _is_text(value)
        and "/" not in value
        and value not in (".", "..")
        and len(_APPENDED.sub("", value).encode(errors="replace")) <= LONGEST_NAME
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return _is_int(value) and value >= 1


def _is_resources(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and _is_number(number) and number >= 0
        for name, number in value.items()
    )


def _is_stop(value: Any) -> bool:
    return isinstance(value, Mapping) and all(
        _is_text(name) and _is_number(number) for name, number in value.items()
    )


def _is_log(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return len(value) == 2 and all(map(_is_text, value))
    return isinstance(value, bool) or _is_text(value)


def _is_live(value: Any) -> bool:
    plain = (str, int, float, Mapping)
    values = value if isinstance(value, (list, tuple)) else [value]
    return not any(isinstance(each, plain) for each in values)


def _or_null(check: Check) -> Check:
    return lambda value: value is None or check[0](value), f"{check[1]}, or null"


ANY: Check = (lambda _: True, "")
TEXT: Check = (_is_text, "a text")
BOOL: Check = (lambda value: isinstance(value, bool), "true or false")
FAILURES: Check = (lambda value: _is_int(value) and value >= -1, "a whole number from 0, or -1")
MAPPING: Check = (lambda value: isinstance(value, Mapping), "a mapping")
SECTION: Check = (
    lambda value: not isinstance(value, (str, int, float, list)),
    "a mapping of arguments",
)
LIVE: Check = (_is_live, "none, since only a script can give it")
RESOURCES: Check = (_is_resources, "a mapping of numbers from 0, such as {CPU: 1}")

CHECKS: dict[str, dict[str, Check]] = {
    "run": {
        "name": _or_null(
            (_is_name, f"a name without slashes, of at most {LONGEST_NAME} bytes, not . or ..")
        ),
        "storage_path": _or_null(TEXT),
        "storage_filesystem": LIVE,
        "failure_config": SECTION,
        "checkpoint_config": SECTION,
        "callbacks": LIVE,
        "worker_runtime_env": _or_null(MAPPING),
        "logging_config": LIVE,
        # Ray Tune's alone.
        "stop": _or_null((_is_stop, "a mapping of metrics to numbers, such as {step: 100}")),
        "verbose": _or_null(
            (lambda value: _is_int(value) and 0 <= value <= 3, "a whole number from 0 to 3")
        ),
        "log_to_file": (_is_log, "true, false, a name or a list of two"),
        "sync_config": LIVE,
        "progress_reporter": LIVE,
    },
    "run.failure_config": {
        "max_failures": FAILURES,
        "controller_failure_limit": FAILURES,
        "max_preemption_failures": FAILURES,
    },
    "run.checkpoint_config": {
        "num_to_keep": _or_null((lambda value: _is_int(value) and value > 0, "a number above 0")),
        "checkpoint_score_attribute": _or_null(TEXT),
    },
    "scaling": {
        "trainer_resources": (lambda value: value is None, "none: the run itself needs no more"),
        "num_workers": (
            lambda value: (
                all(map(_is_count, value)) and len(value) == 2
                if isinstance(value, (list, tuple))
                else _is_count(value)
            ),
            "a number of workers from 1, or the fewest and the most of them",
        ),
        "use_gpu": BOOL,
        "use_tpu": BOOL,
        "resources_per_worker": _or_null(RESOURCES),
        "placement_strategy": (
            lambda value: isinstance(value, str) and value in STRATEGIES,
            f"one of {', '.join(STRATEGIES)}",
        ),
        "accelerator_type": _or_null(TEXT),
        "topology": _or_null(TEXT),
        "label_selector": _or_null(
            (lambda value: isinstance(value, (Mapping, list)), "a mapping, or a list of them")
        ),
        "elastic_resize_monitor_interval_s": (
            lambda value: _is_number(value) and value >= 0,
            "seconds, a number from 0",
        ),
    },
}
"""By section and argument, what is right and how it is called."""
