"""`python -m service`: the server, by the operator's flags and environment.

The engine has the main thread and the server another. To OpenMP the main thread is one of its own
whether it computes or not: were the engine elsewhere, there would be a thread more than cores, and
GNU's OpenMP then sleeps at every barrier where it would spin. On a CPU that is a sixth of a
network's time.
"""

import logging
import math
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from socket import IPPROTO_TCP, socketpair
from types import FrameType

import uvicorn
from pydantic import ValidationError
from typing_extensions import override

from service.app import create_app
from service.memory import keep_freed_memory
from service.settings import Settings

if sys.platform == "linux":
    from socket import TCP_USER_TIMEOUT

_LAST_WORDS = 5  # seconds past the drain, to send what it ended with


class _NoProbes(logging.Filter):
    """Leaves the probes of /health/ out of the access log: one comes every few seconds."""

    @override
    def filter(self, record: logging.LogRecord) -> bool:
        words = record.args if isinstance(record.args, tuple) else ()
        return not (len(words) > 2 and str(words[2]).startswith("/health/"))


class _Server(uvicorn.Server):
    """Begins to drain at the signal, not once the requests that wait for it have been answered."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain = drain

    @override
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        threading.Thread(target=self._drain, name="noneq-drain", daemon=True).start()
        super().handle_exit(sig, frame)


def main() -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted."""
    settings = _settings()
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if settings.log_level != "debug":  # its own account of starting would drown the one line below
        logging.getLogger("uvicorn.error").setLevel(max(logging.WARNING, logging.root.level))
    logging.getLogger("uvicorn.access").addFilter(_NoProbes())
    keep_freed_memory()
    lent: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
    url = ""

    def announce(models: Sequence[str]) -> None:
        print(f"noneq is ready with {', '.join(models)}; a page to try it on: {url}", flush=True)

    app = create_app(settings, announce, lent.put)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        timeout_graceful_shutdown=math.ceil(settings.drain_seconds) + _LAST_WORDS,
        server_header=False,
        lifespan="on",
    )
    socket = config.bind_socket()
    if sys.platform == "linux":
        # Of a connection that is closed before its client has read the rest; accepted sockets take
        # this from the one that listens.
        waits = math.ceil(1000 * settings.write_seconds)
        socket.setsockopt(IPPROTO_TCP, TCP_USER_TIMEOUT, waits)
    host = "localhost" if settings.host in ("", "0.0.0.0", "::") else settings.host
    url = f"http://{f'[{host}]' if ':' in host else host}:{socket.getsockname()[1]}"
    server = _Server(config, app.state.backend.close)
    ended = threading.Event()

    def listen() -> None:
        try:
            server.run(sockets=[socket])
        finally:
            lent.put(None)
            if not ended.wait(_LAST_WORDS):  # a network call that never returns
                os._exit(1)

    came: list[int] = []
    # A handler in Python would wait for the network call that the main thread is in; the byte that
    # comes with a signal does not.
    bell, heard = socketpair()
    bell.setblocking(False)
    for sig in (signal.SIGTERM, signal.SIGINT):
        signal.signal(sig, lambda *_: None)
    signal.set_wakeup_fd(bell.fileno())

    def heed() -> None:
        while True:
            for sig in heard.recv(16):
                came.append(sig)
                server.handle_exit(sig, None)

    threading.Thread(target=heed, name="noneq-signals", daemon=True).start()
    threading.Thread(target=listen, name="noneq-server").start()
    while (engine := lent.get()) is not None:
        engine()
    ended.set()
    sys.exit(130 if signal.SIGINT in came else 0 if server.started else 1)


def _settings() -> Settings:
    """The operator's settings; a mistake in them ends the process with a line for each."""
    try:
        settings = Settings.from_command_line()
        settings.resolve_device()
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            name = "_".join(["NONEQ", *map(str, fault["loc"])]).upper()
            print(f"{name}: {fault['msg']}, came {fault['input']!r}", file=sys.stderr)
        sys.exit(2)
    except ValueError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    return settings


if __name__ == "__main__":
    main()
