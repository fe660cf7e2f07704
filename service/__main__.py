"""Run the server: `python -m service`, with the operator's flags and environment.

The engine runs in the main thread and the server in another. OpenMP counts the main thread even if
it computes nothing. With the engine elsewhere there would be more threads than cores, so GNU OpenMP
would sleep at every barrier instead of spinning, which costs a sixth of a network's time on a CPU.
"""

import logging
import math
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from socket import IPPROTO_TCP
from types import FrameType

import uvicorn
from pydantic import ValidationError
from typing_extensions import override

from service import logs
from service.api.connection import backlog_of, limited, room_for
from service.api.middleware import HEALTH
from service.app import create_app
from service.catalogue import FILE, find_files
from service.errors import NotReady, Problem
from service.jobs.folder import check_folder
from service.memory import keep_freed_memory
from service.settings import Settings
from service.state import Backend

if sys.platform == "linux":
    from socket import TCP_USER_TIMEOUT

_LAST_WORDS = 5  # seconds after the drain, to send the last answers
_FAULT, _MISTAKE = 1, 2  # exit status: it cannot listen or start; a setting is wrong


class _NoProbes(logging.Filter):
    """Keeps health probes out of the access log, which arrive every few seconds."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        words = record.args if isinstance(record.args, tuple) else ()
        return not (len(words) > 2 and str(words[2]).startswith(HEALTH))


class _Server(uvicorn.Server):
    """Starts draining at the signal instead of after the waiting requests have been answered."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        threading.Thread(target=self._drain, name="noneq-drain", daemon=True).start()
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests."""
    settings = _settings()
    listener = _listen(settings)
    logs.configure(settings)
    logging.getLogger("uvicorn.access").addFilter(_NoProbes())
    keep_freed_memory()
    lent: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    failed = 0
    url = ""

    def announce(models: Sequence[str]) -> None:
        served = ", ".join(models) or "no model yet"
        print(f"noneq is ready with {served}; a page to try it on: {url}", flush=True)

    def fail(problem: Problem) -> None:
        nonlocal failed
        reasons = problem.fields.get("received")  # for each file that is not served
        failed = _MISTAKE if isinstance(reasons, list) else _FAULT
        _tell(problem.detail)
        for reason in reasons if isinstance(reasons, list) else ():
            _tell(f"  {reason}")
        server.should_exit = True

    try:
        app = create_app(settings, announce, lent.put, fail)
    except ValueError as error:  # of the key file, or an extra that is missing
        _tell(str(error))
        sys.exit(_MISTAKE)
    backend: Backend = app.state.backend
    config = uvicorn.Config(
        app,
        http=limited(settings, backend.metrics),
        loop="asyncio",  # its read size can be set
        ws="none",
        backlog=backlog_of(settings.max_connections),
        timeout_keep_alive=math.ceil(settings.idle_seconds),
        log_config=None,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + _LAST_WORDS,
        server_header=False,
        lifespan="on",
    )
    if sys.platform == "linux":
        # For connections that are closed before the client has read everything; accepted sockets
        # inherit it from the listener.
        waits = math.ceil(1000 * settings.write_seconds)
        listener.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, waits)
    host = "localhost" if settings.host in ("", "0.0.0.0", "::") else settings.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    server = _Server(config, backend.close)
    ended = threading.Event()

    def listen() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            lent.put(None)
            if not ended.wait(_LAST_WORDS):  # a network call that never returns
                os._exit(_FAULT)

    came: list[int] = []
    # A Python signal handler would run only after the main thread's network call; a wakeup byte is
    # read at once.
    wakeup, received = socket.socketpair()
    wakeup.setblocking(False)
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)
    signal.set_wakeup_fd(wakeup.fileno())

    def handle_signals() -> None:
        while True:
            for sig in received.recv(16):
                if not came and isinstance(backend.state(), NotReady):
                    # Nothing has been accepted, and loading may never end.
                    last = threading.Timer(_LAST_WORDS, os._exit, [_status(sig)])
                    last.daemon = True
                    last.start()
                came.append(sig)
                server.handle_exit(sig, None)

    threading.Thread(target=handle_signals, name="noneq-signals", daemon=True).start()
    threading.Thread(target=listen, name="noneq-server").start()
    while (engine := lent.get()) is not None:
        engine()
    ended.set()
    sys.exit(failed or (_status(*came) if server.started else _FAULT))


def _status(*came: int) -> int:
    return 130 if signal.SIGINT in came else 0


def _settings() -> Settings:
    """Read the operator's settings; on mistakes, print a line for each and exit."""
    try:
        settings = Settings.from_command_line()
        settings.resolve_devices()
        if settings.jobs is not None:
            check_folder(settings.jobs)
        if not (settings.watch or find_files(settings.models)):
            raise ValueError(f"no models in {settings.models}: {_why_none(settings.models)}")
        most = room_for(settings.max_connections)
        return settings.model_copy(update={"max_connections": most})
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = "_".join(["NONEQ", *map(str, fault["loc"])]).upper()
            _tell(f"{name}: {fault['msg']}, came {fault['input']!r}")
    except (ValueError, OSError) as error:
        _tell(str(error))
    sys.exit(_MISTAKE)


def _why_none(folder: Path) -> str:
    if not folder.exists():
        return "there is no such folder; NONEQ_MODELS names it"
    if (folder / FILE).exists():
        return "this is a model itself; NONEQ_MODELS names the folder that holds it"
    return f"each is a folder in it with a file {FILE}; `python -m training export` makes one"


def _listen(settings: Settings) -> socket.socket:
    """Open the socket; if that fails, print why and exit."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    # With its protocol named asyncio turns off the delay of small packets: else an answer, which is
    # written in two, waits for the client to acknowledge the first: 40 ms.
    found = socket.socket(family, socket.SOCK_STREAM, IPPROTO_TCP)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((settings.host, settings.port))
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        why = error.strerror or error
        found.close()
        _tell(f"cannot listen on {where}: {why}; NONEQ_HOST and NONEQ_PORT say where")
        sys.exit(_FAULT)
    return found


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
