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
from diffusion.sampling import begin
from service.engine.faults import out_of_memory
from service.settings import Settings

_SIZES = [2**i for i in range(13)]  # 1 to 4096
_LONGEST = 0.25  # seconds of a tick: whoever comes waits for it
_ENOUGH = 0.95  # of the best rate: what more rows bring beyond that is not worth their wait
_TRIES = 3
FIXED = 32  # of the deterministic mode, where another size would be other bits
_HELD = 2**28  # bytes of all slots of a kind
_FEWEST, _BATCHES = 512, 16  # slots: so many, and so many batches


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
    return Room(batch, settings.slots or _slots(model, batch))


@torch.inference_mode()
def _best_batch(model: DiffusionModel) -> int:
    """The fewest rows at which the network gives nearly as many rows a second as it ever does."""
    rates: dict[int, float] = {}
    for size in _SIZES:
        try:
            seconds = _seconds(model, size)
        except Exception as error:
            if not rates or not out_of_memory(error):
                raise
            break
        rates[size] = size / seconds
        if 2 * seconds > _LONGEST:
            break
    best = max(rates.values())
    return next(size for size, rate in rates.items() if rate >= _ENOUGH * best)


def _seconds(model: DiffusionModel, rows: int) -> float:
    """The shortest of a few network calls."""
    noise = counter_noise(0, torch.arange(rows, device=model.device), model.T + 1)
    x_t = begin(model, noise, None, rows)
    t = torch.full((rows,), model.T, device=model.device)
    found = math.inf
    for _ in range(_TRIES):
        begun = time.perf_counter()
        model.predict(x_t, t).x_0.sum().item()  # waits for the device
        found = min(found, time.perf_counter() - begun)
    return found


def _slots(model: DiffusionModel, batch: int) -> int:
    """Some batches' worth, as far as memory goes: x_t, x_0hat, what was seen, and terms."""
    size = 4 * (4 * math.prod(model.event) + model.T)
    return max(2 * batch, min(_HELD // size, max(_FEWEST, _BATCHES * batch)))
