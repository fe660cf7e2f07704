"""`python -m noneq.cli.tethered MODULE ...`: run a module that ends when its parent does.

The parent holds the other end of the pipe that is stdin here, and writes nothing: when it ends, be
it killed, the pipe does. Then comes SIGTERM, and what does not heed it in time is ended.
"""

import os
import runpy
import signal
import sys
import threading
import time

_SECONDS = 5.0  # from SIGTERM to the end; nobody waits for an answer any more


def watch(pipe: int) -> None:
    """Wait for a pipe's end, then end this process."""
    while os.read(pipe, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_SECONDS)
    os._exit(1)


def main() -> None:
    """Run the module that the command line names, with the rest of it."""
    pipe = os.dup(sys.stdin.fileno())
    threading.Thread(target=watch, args=(pipe,), name="noneq-tether", daemon=True).start()
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
