"""The engine on the caller's thread, as `python -m service` has it, and asked from another.

On a thread of its own it would be one more than OpenMP counts on, and slow down what is timed
beside it.
"""

import queue
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import TypeVar

from diffusion.model import DiffusionModel
from service.engine.engine import Engine
from service.settings import Settings

Found = TypeVar("Found")


def hosted(
    models: Mapping[str, DiffusionModel], settings: Settings, act: Callable[[Engine], Found]
) -> Found:
    """What `act` finds, given a warm engine that runs on this thread until it is done."""
    lent: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    engine = Engine(models, settings, run_loop=lent.put)
    found: Future[Found] = Future()

    def ask() -> None:
        try:
            engine.warm()
            found.set_result(act(engine))
        except BaseException as error:  # whatever it is, the caller's to see
            found.set_exception(error)
        finally:
            engine.stop()

    threading.Thread(target=ask).start()
    lent.get()()
    return found.result()
