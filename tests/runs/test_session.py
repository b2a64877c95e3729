"""A Ray that can't be had is a mistake of the set-up: one message that says where to look."""

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import raybrew as rb
from raybrew.runs.cluster import check_ray_address, ray_session
from raybrew.runs.run import Run
from tests.made import make_job

STARTING = """
from raybrew.runs.cluster import ray_session
from raybrew.errors import ConfigError

try:
    with ray_session():
        print("session")
except ConfigError as error:
    print(error)
"""


@pytest.mark.ray
def test_files_of_ray_in_too_deep_a_folder(tmp_path: Path):
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", STARTING],
        env={**os.environ, "RAY_ADDRESS": "local", "RAY_TMPDIR": str(deep)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "session\n" not in done.stdout
    assert "path length" in done.stdout
    assert "RAY_TMPDIR" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture
def port() -> Iterator[int]:
    """A port of this machine at which nothing listens."""
    with socket.socket() as taken:
        taken.bind(("", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_that_does_not_answer_is_found_in_seconds(scheme, port, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray would try for minutes"))
    monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{port}")
    monkeypatch.setenv("RAYBREW_RAY_CONNECT_S", "0.6")
    message = rf"expected a cluster at .*:{port} \(RAY_ADDRESS={scheme}127.*in 0\.6 s: .*refused"
    job = make_job({"a": "x/a"}, tmp_path / "store")
    begin = time.monotonic()
    for start in (ray_session(), Run(job, "distill", None, None)):
        with pytest.raises(rb.ConfigError, match=message), start:
            pass
    assert 2 * 0.1 < time.monotonic() - begin < 5
    assert not Path("runs").exists()


def test_an_address_that_answers_late_is_waited_for(port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    tried = []

    def late(*arguments):
        tried.append(arguments)
        if len(tried) < 3:
            raise ConnectionRefusedError(111, "Connection refused")
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", late)
    monkeypatch.setattr("time.sleep", lambda _: None)
    check_ray_address()
    assert len(tried) == 3


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:99999"])
def test_what_is_no_address(address, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", address)
    message = f"RAY_ADDRESS: expected host:port, .*got '{re.escape(address)}'"
    with pytest.raises(rb.ConfigError, match=message), ray_session():
        pass


@pytest.mark.parametrize("seconds", ["soon", "-1", "nan", "inf"])
def test_what_is_no_time_to_wait(seconds, port, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    monkeypatch.setenv("RAYBREW_RAY_CONNECT_S", seconds)
    with pytest.raises(rb.ConfigError, match=f"CONNECT_S: expected seconds, got '{seconds}'"):
        check_ray_address()


def test_a_ray_that_is_not_up_in_time_is_one_message(monkeypatch):
    """Ray says so by a plain Exception."""

    def late(**_):
        raise Exception("The current node timed out during startup.")

    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr("ray.init", late)
    message = "can't be reached or started: The current node timed out.*run the same again"
    with pytest.raises(rb.ConfigError, match=message), ray_session():
        pass


@pytest.mark.long
@pytest.mark.parametrize(("given", "shown"), [(None, False), ("0", False), ("1", True)])
def test_what_workers_print_is_shown_where_ray_is_asked_for_it(given, shown):
    code = """
import ray
ray.init = lambda **options: print(options["log_to_driver"])
ray.shutdown = lambda: None
from raybrew.runs.cluster import ray_session
with ray_session():
    pass
"""
    env = {key: value for key, value in os.environ.items() if key != "RAY_LOG_TO_DRIVER"}
    env |= {"RAY_ADDRESS": "local"} | ({} if given is None else {"RAY_LOG_TO_DRIVER": given})
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{shown}\n"


@pytest.mark.parametrize("variable", ["", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_a_home_that_cannot_be_written_takes_no_token(variable, tmp_path, monkeypatch):
    """Ray's own refuses to start without the file ~/.ray/auth_token."""
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "mine")  # such that what is set here is undone
        if name != variable:
            monkeypatch.delenv(name)
    tokens = []
    monkeypatch.setattr("ray.init", lambda **_: tokens.append(os.environ.get("RAY_AUTH_TOKEN")))
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    for home in ("home", "file"):
        (tmp_path / "file").touch()
        monkeypatch.setenv("HOME", str(tmp_path / home))
        with ray_session():
            pass
    given = "mine" if variable == "RAY_AUTH_TOKEN" else None
    assert tokens[0] == given
    assert tokens[1] == given if variable else len(tokens[1]) == 32
