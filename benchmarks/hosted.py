"""Run the engine on the calling thread, as `python -m service` does, and submit from another.

On its own thread the engine would add one to OpenMP's threads and slow down whatever is timed in
the same process.
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
    """Return the result of `act`, called on another thread while a warm engine runs on this one."""
    lent: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    engine = Engine(models, settings, run_loop=lent.put)
    found: Future[Found] = Future()

    def ask() -> None:
        try:
            engine.warm()
            found.set_result(act(engine))
        except BaseException as error:  # pass any error on to the caller
            found.set_exception(error)
        finally:
            engine.stop()

    threading.Thread(target=ask).start()
    lent.get()()
    return found.result()
