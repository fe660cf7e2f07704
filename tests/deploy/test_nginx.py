"""The service behind a real nginx, by deploy/nginx/noneq.conf; skipped where there is none."""

import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings
from tests.noneq.conftest import on_a_socket
from tests.service.http.caller import held
from tests.service.http.conftest import gaussian_mixture, save

CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "noneq.conf"
NAME = "noneq.example.org"

pytestmark = pytest.mark.skipif(
    shutil.which("nginx") is None or shutil.which("openssl") is None, reason="there is no nginx"
)


class Behind(NamedTuple):
    """A service that nginx shows."""

    app: FastAPI
    direct: str
    plain: int
    secure: int
    trusted: ssl.SSLContext

    def client(self) -> httpx.Client:
        """A caller who asks for the name, and checks the certificate."""
        return httpx.Client(
            base_url=f"https://127.0.0.1:{self.secure}",
            headers={"host": NAME},
            verify=self.trusted,
            timeout=60,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def certificate(folder: Path) -> ssl.SSLContext:
    """A certificate of its own for the name and the address, and a caller's trust in it."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-days", "2", "-subj", f"/CN={NAME}", "-keyout", "privkey.pem"]
    command += ["-addext", f"subjectAltName=DNS:{NAME},IP:127.0.0.1", "-out", "fullchain.pem"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return ssl.create_default_context(cafile=str(folder / "fullchain.pem"))


def configured(folder: Path, text: str, service: str, plain: int, secure: int) -> Path:
    """The shipped configuration with the test's ports and certificate, and nothing else changed."""
    for pattern, value in (
        (r"server 127\.0\.0\.1:8000;", f"server {service.removeprefix('http://')};"),
        (r"listen 80;", f"listen 127.0.0.1:{plain};"),
        (r"listen 443 ssl;", f"listen 127.0.0.1:{secure} ssl;"),
        (r"listen \[::\]:\d+( ssl)?;", ""),
        (r"/etc/letsencrypt/live/noneq\.example\.org", str(folder)),
    ):
        text, count = re.subn(pattern, value, text)
        assert count, pattern
    places = "".join(
        f"{name}_temp_path {folder}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    main.write_text(
        f"pid {folder}/pid;\nerror_log {folder}/error.log;\ndaemon off;\nmaster_process off;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}{text}\n}}\n"
    )
    return main


@contextlib.contextmanager
def behind(folder: Path, text: str) -> Iterator[Behind]:
    """The service, and nginx in front of it."""
    save(folder / "models" / "m" / "model.safetensors", *gaussian_mixture())
    trusted, plain, secure = certificate(folder), free_port(), free_port()
    settings = Settings(
        models=folder / "models", device="cpu", batch_size=8, allowed_hosts=NAME, max_jobs=0
    )
    app = create_app(settings)
    with on_a_socket(app) as url:
        main = configured(folder, text, url, plain, secure)
        process = subprocess.Popen(["nginx", "-p", str(folder), "-c", str(main)])
        try:
            for _ in range(500):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", secure)):
                    break
                assert process.poll() is None, (folder / "error.log").read_text()
                time.sleep(0.01)
            yield Behind(app, url, plain, secure, trusted)
        finally:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    with behind(tmp_path_factory.mktemp("nginx"), CONF.read_text()) as found:
        yield found


ASKED = {"num_samples": 2, "seed": 1, "sampler": {"steps": 4}}


def test_it_answers_as_the_service_does(shown: Behind) -> None:
    with shown.client() as client:
        headers = {"x-request-id": "mine"}
        answer = client.post("/sample", json=ASKED, headers=headers)
        assert answer.headers["x-request-id"] == "mine"
        assert "x-queue-time" in answer.headers
        assert answer.json() == httpx.post(f"{shown.direct}/sample", json=ASKED).json()
        problem = client.post("/sample", json={"model": "nothing"})
        assert problem.status_code == 404
        assert problem.headers["content-type"] == "application/problem+json"
        assert client.get("/").status_code == 200
        page = {"origin": f"https://{NAME}", "sec-fetch-site": "same-origin"}
        assert client.post("/sample", json=ASKED, headers=page).status_code == 200
        foreign = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
        assert client.post("/sample", json=ASKED, headers=foreign).status_code == 403


def test_plain_http_is_sent_to_tls_and_stays_a_post(shown: Behind) -> None:
    url = f"http://127.0.0.1:{shown.plain}/sample?model=m"
    answer = httpx.post(url, json=ASKED, headers={"host": NAME})
    assert answer.status_code == 308
    assert answer.headers["location"] == f"https://{NAME}/sample?model=m"


def test_events_come_as_they_are_sent(shown: Behind) -> None:
    """The first is there while the network call has not even begun: nothing waits for the end."""
    headers = {"accept": "text/event-stream"}
    with (
        shown.client() as client,
        held(shown.app, "m") as gate,
        client.stream("POST", "/sample", json=ASKED, headers=headers) as answer,
    ):
        lines = answer.iter_lines()
        assert next(lines) == "event: progress"
        assert json.loads(next(lines).removeprefix("data: "))["state"] in ("waiting", "running")
        gate.set()
        assert "event: result" in list(lines)


def test_a_caller_that_leaves_frees_its_rows(shown: Behind) -> None:
    engine = shown.app.state.backend.engine
    with shown.client() as client, held(shown.app, "m") as gate:
        with client.stream(
            "POST", "/sample", json=ASKED, headers={"accept": "text/event-stream"}
        ) as answer:
            next(answer.iter_lines())
            assert engine.pending > 0
        gate.set()
        for _ in range(1000):
            if engine.pending == 0:
                break
            time.sleep(0.01)
        assert engine.pending == 0
    metrics = httpx.get(f"{shown.direct}/metrics").text
    assert 'outcome="client-left",route="/sample"} 1.0' in metrics


def test_bodies_are_as_large_as_the_service_takes(shown: Behind) -> None:
    """Larger than nginx takes by itself; beyond the service's limit nginx refuses."""
    with shown.client() as client:
        body = json.dumps({**ASKED, "model": "m" + " " * 3_000_000})
        kind = {"content-type": "application/json"}
        assert client.post("/sample", content=body, headers=kind).status_code == 404
        binary = {"content-type": "application/octet-stream"}
        large = client.post("/sample", content=bytes(33 * 2**20), headers=binary)
        assert large.status_code == 413


def test_models_and_metrics_are_not_for_who_comes_through(shown: Behind) -> None:
    with shown.client() as client:
        for path in ("/models/m/unload", "/models/m/load", "/v2/repository/index"):
            assert client.post(path).status_code == 403
        assert client.get("/metrics").status_code == 403
        assert client.get("/models/m").status_code == 200
    assert list(shown.app.state.backend.catalogue.served) == ["m"]
    # The service's own user on its machine may.
    assert httpx.post(f"{shown.direct}/models/m/load", timeout=60).status_code == 200


def test_who_comes_through_is_not_local_without_that_rule(tmp_path: Path) -> None:
    """And below a path, where the page's relative addresses work."""
    text = re.sub(r"    location ~ .*?\}\n", "", CONF.read_text(), flags=re.DOTALL)
    root, below = "location / {\n        proxy_pass http://noneq;", "location /noneq/ {\n"
    assert root in text
    text = text.replace(root, f"{below}        proxy_pass http://noneq/;")
    with behind(tmp_path, text) as shown, shown.client() as client:
        refused = client.post("/noneq/models/m/unload")
        assert refused.status_code == 403
        assert refused.json()["type"] == "urn:noneq:problem:forbidden"
        assert client.post("/noneq/sample", json=ASKED).status_code == 200
        assert client.get("/noneq/").status_code == 200
        assert client.get("/sample").status_code == 404
