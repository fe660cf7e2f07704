"""`python -m service`: it begins with a line, and ends on SIGTERM without losing a request."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.__main__ import main
from tests.service.http.caller import parse
from tests.service.http.command import asking, metrics, post, running


def test_the_command_serves_and_ends_on_sigterm_without_losing_a_request(folder: Path) -> None:
    with running(folder) as (process, url, line):
        assert "bit-patterns, gaussian-mixture, grey" in line
        with asking(url, 16) as answers:
            process.send_signal(signal.SIGTERM)
        assert [answer.status_code for answer in answers] == [200]
        assert len(answers[0].json()["samples"]) == 16
        assert process.wait(30) == 0


def test_open_streams_end_within_the_grace_period_of_sigterm(single: Path) -> None:
    """In their results where the drain has time for them, else in a problem that says so."""
    ends: dict[int, tuple[str, Any]] = {}
    begun = threading.Semaphore(0)

    def listen(url: str, samples: int) -> None:
        asked = {"model": "gaussian-mixture", "num_samples": samples}
        accept = {"accept": "text/event-stream; previews=2"}
        body = ""
        with httpx.stream(
            "POST", f"{url}/sample", json=asked, headers=accept, timeout=200
        ) as response:
            for text in response.iter_text():  # raises where the connection is cut off
                if not body:
                    begun.release()
                body += text
        ends[samples] = parse(body)[-1]

    with running(single, "--drain-seconds", "5") as (process, url, _):
        listeners = [
            threading.Thread(target=listen, args=(url, samples)) for samples in (1, 2, 3, 4000)
        ]
        for listener in listeners:
            listener.start()
        for _ in listeners:
            assert begun.acquire(timeout=60)
        process.send_signal(signal.SIGTERM)
        for listener in listeners:
            listener.join(60)
        assert process.wait(30) == 0
    for samples in (1, 2, 3):
        name, data = ends[samples]
        assert name == "result"
        assert len(json.loads(data)["samples"]) == samples
    name, data = ends[4000]
    assert (name, json.loads(data)["type"]) == ("error", "urn:noneq:problem:draining")


def test_clients_that_leave_leave_nothing_behind(single: Path) -> None:
    """Whatever they waited for: their own body's end, their turn, an answer, the next event."""
    asked = {"model": "gaussian-mixture", "num_samples": 4000}
    stream = "text/event-stream; previews=4"
    with running(single, "--slots", "8") as (_, url, _):
        callers = [post(url, asked, "application/json", whole=False) for _ in range(2)]
        # More than there are slots for.
        callers += [post(url, asked, accept) for accept in ("application/json", stream) * 6]
        found = metrics(url)
        while found["noneq_queue_cost"] < 11 * 400_000 or found["noneq_rows_running"] < 8:
            found = metrics(url)
        assert found["noneq_rows_waiting"] > 0
        for caller in callers:
            caller.close()
        gone = 'noneq_requests_total{outcome="client-left",route="/sample"}'
        deadline = time.monotonic() + 60
        while metrics(url).get(gone) != len(callers):
            assert time.monotonic() < deadline
        httpx.post(f"{url}/sample", json=asked | {"num_samples": 1}).raise_for_status()
        found = metrics(url)
        for name in ("queue_cost", "queue_bytes", "rows_running", "rows_waiting"):
            assert found[f"noneq_{name}"] == 0, name


def test_what_the_drain_does_not_finish_is_told_so_and_nothing_new_is_taken(single: Path) -> None:
    with running(single, "--drain-seconds", "1") as (process, url, _), httpx.Client() as open_line:
        open_line.get(f"{url}/health/ready")
        with asking(url, 4096) as answers:
            process.send_signal(signal.SIGTERM)
            with suppress(httpx.TransportError):  # an idle connection may be closed at once
                while open_line.get(f"{url}/health/ready").status_code == 200:
                    pass
                late = open_line.post(f"{url}/sample", json={"model": "gaussian-mixture"})
                assert late.status_code == 503
        assert [answer.status_code for answer in answers] == [503]
        assert answers[0].json()["type"] == "urn:noneq:problem:draining"
        assert int(answers[0].headers["retry-after"]) >= 1
        assert process.wait(30) == 0


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("NONEQ_PORT", "http", "NONEQ_PORT"),
        ("NONEQ_DEVICE", "tpu", "NONEQ_DEVICE"),
        ("NONEQ_BATCH_SIZE", "-1", "NONEQ_BATCH_SIZE"),
        ("NONEQ_DEVICE", "cuda:99", "CUDA"),
        ("NONEQ_JOBS", "/dev/null/jobs", "NONEQ_JOBS"),
    ],
)
def test_a_mistaken_setting_ends_the_command_with_a_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    value: str,
    told: str,
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(sys, "argv", ["service"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def ended(*flags: str) -> int:
    """The exit status of the command that does not come to serve."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["service", *flags])
        with pytest.raises(SystemExit) as found:
            main()
    return int(found.value.code or 0)


def test_without_models_it_ends_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended("--models", str(tmp_path / "nowhere")) == 2
    told = capsys.readouterr().err
    assert (
        told == f"no models in {tmp_path}/nowhere: there is no such folder; NONEQ_MODELS names it\n"
    )
    assert ended("--models", str(tmp_path)) == 2
    (tmp_path / "model.safetensors").touch()
    assert ended("--models", str(tmp_path)) == 2
    assert "this is a model itself" in capsys.readouterr().err


def test_a_port_in_use_ends_it_with_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert ended("--models", str(folder), "--port", str(port)) == 1
    told = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in told


def test_where_nothing_can_be_served_it_ends_and_says_why(tmp_path: Path) -> None:
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "model.safetensors")
    flags = ("--models", str(tmp_path), "--port", "0", "--log-level", "critical")
    command = [sys.executable, "-m", "service", *flags]
    found = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert found.returncode == 2
    assert found.stderr.splitlines() == [
        "No model is served.",
        "  piped/model.safetensors: it is a pipe, not a file",
    ]


def test_it_serves_the_others_beside_a_pipe_and_heeds_sigterm(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "good").symlink_to(folder / "gaussian-mixture")
    (tmp_path / "piped").mkdir()
    os.mkfifo(tmp_path / "piped" / "model.safetensors")
    with running(tmp_path) as (process, url, line):
        assert "ready with good;" in line
        (refused,) = httpx.get(f"{url}/models").json()["refused"]
        assert refused["file"] == "piped/model.safetensors"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
