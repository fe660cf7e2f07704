"""The real application, in this process and over a real socket, with tiny models."""

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from PIL import Image

from noneq import AsyncClient, Patience
from noneq.cli.main import main
from service.app import create_app
from service.settings import Settings
from tests.service.http.caller import starting
from tests.service.http.conftest import save_animals, save_models

ONCE = Patience(retries=0)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three models, and a classifier that reads one's data."""
    found = tmp_path_factory.mktemp("models")
    save_models(found)
    save_animals(found)
    return found


@pytest.fixture(scope="module")
async def app(folder: Path) -> AsyncIterator[FastAPI]:
    settings = Settings(models=folder, device="cpu", batch_size=8, slots=512, max_queue_cost=5000)
    async with starting(settings) as found:
        yield found


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[AsyncClient]:
    """A client of the app in this process; it asks once."""
    async with AsyncClient(transport=httpx.ASGITransport(app), patience=ONCE) as found:
        yield found


@contextmanager
def listening(settings: Settings) -> Iterator[str]:
    """The URL of an app on a socket of its own."""
    with on_a_socket(create_app(settings)) as url:
        yield url


@contextmanager
def on_a_socket(app: FastAPI, port: int = 0) -> Iterator[str]:
    """The URL of the app on a socket."""
    config = uvicorn.Config(app, port=port, log_config=None, lifespan="on")
    socket = config.bind_socket()
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
    thread.start()
    try:
        while app.state.backend.state() is not None:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


@pytest.fixture(scope="session")
def serve(folder: Path) -> Callable[..., AbstractContextManager[str]]:
    """For tests with settings of their own."""

    def with_settings(**settings: object) -> AbstractContextManager[str]:
        return listening(Settings(models=folder, device="cpu", batch_size=8, **settings))  # type: ignore[arg-type]

    return with_settings


@pytest.fixture(scope="session")
def url(folder: Path) -> Iterator[str]:
    """The app over a real socket."""
    with listening(Settings(models=folder, device="cpu", batch_size=256)) as found:
        yield found


@pytest.fixture
def noneq(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """The command in a folder of its own: its exit status, stdout and stderr."""
    monkeypatch.setenv("NONEQ_URL", url)
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        try:
            status = main(words)
        except SystemExit as ended:  # argparse's own
            status = int(ended.code or 0)
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.fixture
def greys(tmp_path: Path) -> Path:
    """A folder of five pictures, one of which is of another size."""
    found = tmp_path / "greys"
    found.mkdir()
    for i in range(4):
        pixels = (np.arange(48, dtype=np.uint8) * (i + 1)).reshape(6, 8)
        Image.fromarray(pixels).save(found / f"{i}.png")
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(found / "small.png")
    return found
