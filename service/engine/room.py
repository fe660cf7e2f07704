"""How many rows a tick of a model has, and how many it holds between ticks: found by trying.

The best size of a network call runs from a few rows, for a U-Net on a CPU, to thousands, for a
small network anywhere; only the machine knows.
"""

import math
import time
from dataclasses import dataclass

import torch

from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.samplers import begin
from service.engine.faults import out_of_memory
from service.settings import Settings

_SIZES = [2**i for i in range(13)]  # 1 to 4096
_LONGEST = 0.25  # seconds of a tick: whoever comes waits for it
_LOSS = 8  # a call's fixed time is at most such a part of what its rows take
_TRIES, _ALONE = 3, 10  # of each size, and of one row
FIXED = 32  # of the deterministic mode, where another size would be other bits
_HELD = 2**28  # bytes of all slots of a kind, and
_SHARE = 8  # at most such a part of the bytes of all requests
_MOST = 2**15  # slots: there is no room for more requests, by what each holds at least


@dataclass(frozen=True)
class Room:
    """A model's room.

    Attributes:
        batch: most rows of a tick.
        slots: most chains, and most data, held at once.
    """

    batch: int
    slots: int


def survey(model: DiffusionModel, rows: int, settings: Settings) -> Room:
    """The room of a model: what the settings leave open is found by trying.

    Args:
        model: on its device.
        rows: most rows of a tick; 0 where that is to be found.
        settings: of the service.
    """
    batch = rows or (FIXED if settings.deterministic else _best_batch(model))
    return Room(batch, settings.slots or _slots(model, batch, settings.max_queue_bytes))


@torch.inference_mode()
def _best_batch(model: DiffusionModel) -> int:
    """The fewest rows beside which a network call's fixed time is small.

    A call of k rows takes about a + b k. 1 / b is the best rate of all sizes, a + b the time of one
    row, and the first power of two with b k >= 8 a is taken: both are measured far from that size,
    so that it does not hang on small differences between its neighbours.
    """
    seconds: dict[int, float] = {}
    for size in _SIZES:
        try:
            seconds[size] = _seconds(model, size)
        except Exception as error:
            if not seconds or not out_of_memory(error):
                raise
            break
        if 2 * seconds[size] > _LONGEST:
            break
    # Other sizes come between the tries of each, so that a slow moment is not one size's alone.
    for _ in range(_TRIES - 1):
        for size in seconds:
            seconds[size] = min(seconds[size], _seconds(model, size))
    alone = min(seconds[1], *(_seconds(model, 1) for _ in range(_ALONE)))
    rate = max(size / taken for size, taken in seconds.items())
    wanted = _LOSS * (alone * rate - 1)
    return next((size for size in seconds if size >= wanted), max(seconds))


def _seconds(model: DiffusionModel, rows: int) -> float:
    """A network call: of a CPU the time that it had, for others may use it as well."""
    clock = time.thread_time if model.device.type == "cpu" else time.perf_counter
    noise = counter_noise(0, torch.arange(rows, device=model.device), model.T + 1)
    x_t = begin(model, noise, None, rows)
    t = torch.full((rows,), model.T, device=model.device)
    model.predict(x_t, t).x_0.sum().item()  # the first of a size is another one
    begun = clock()
    model.predict(x_t, t).x_0.sum().item()  # waits for the device
    return clock() - begun


def _slots(model: DiffusionModel, batch: int, room: int) -> int:
    """As many as memory allows: x_t, x_0hat, what was seen, and terms.

    A job that finds no slot waits for others to end, however short it is. So there is one for the
    first row of every job that can be there. Memory is taken only by slots that are used, on a CPU.
    """
    size = 4 * (4 * math.prod(model.event) + model.T)
    held = _HELD if model.device.type == "cpu" else _HELD // 4
    return max(2 * batch, min(held // size, room // _SHARE // size, _MOST))
