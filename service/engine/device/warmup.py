"""How many rows a tick of a model has, and how many it holds between ticks: found by trying.

The best size of a network call runs from a few rows, for a U-Net on a CPU, to thousands, for a
small network anywhere; only the machine knows.

Rehearsals: ticks that nobody asked for, before the first that somebody did.

They let allocators and kernels settle, tell how long a tick takes, and try the claim of the
deterministic mode on this machine: that a row's bits depend on neither its company nor its place.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import final

import torch
from torch import Tensor

from diffusion.distributions import Bernoulli, Normal
from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.plan import Ancestral
from diffusion.posterior import Observation
from diffusion.posterior.smc import Filter
from diffusion.posterior.twist import Twist
from diffusion.prediction import Prediction
from diffusion.sampling import begin
from service.engine.device.runner import Runner
from service.engine.device.smc import SystemRunner
from service.engine.faults import out_of_memory
from service.engine.jobs import ChainJob, SystemJob, TermJob
from service.engine.scheduling.batch import Entry
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


_SHUFFLES = 16
_TRIES = 3
_BURST = 0.02  # seconds, as the scheduler's
# Elements that a CPU's kernels take at once, at most (two registers of AVX-512). Those left over at
# the end of a tensor go through other code, with other bits, which tells their rows by their place.
_VECTOR = 32
_DIAGONAL = Twist(covariance="diagonal")
_OTHERS, _CHAIN, _TERM, _OTHER_TERMS = range(-4, 0)  # keys of jobs, in the order of a batch


def rehearse(runner: Runner, rows: int) -> None:
    """A tick of `rows` rows, with chains and a term in it."""
    stage = _Stage(runner, rows)
    stage.run(max(1, rows - 1), 0, own_chain=False, own_term=rows > 1)
    runner.receive(runner.collect([], [Entry(_OTHERS, 0, 0, 0)]))  # waits for the device
    stage.clear()


def time_steps(runner: Runner) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of a step by rows: of chains alone, which advance several a tick, and of terms."""
    alone, beside = {}, {}
    for rows in _sizes(runner.batch):
        stage = _Stage(runner, rows, runner.model.T)

        def chains(length: int, stage: "_Stage" = stage, rows: int = rows) -> None:
            stage.run(rows, 0, own_chain=False, own_term=False, length=length)
            entries = [Entry(_OTHERS, row, row, 0) for row in range(rows)]
            runner.receive(runner.collect(entries, [], length))

        def terms(stage: "_Stage" = stage, rows: int = rows) -> None:
            stage.run(0, rows, own_chain=False, own_term=False)
            runner.receive(runner.collect([], [Entry(_OTHER_TERMS, 0, 1, 0)]))

        once = _shortest(partial(chains, 1))
        length = max(1, min(stage.steps, int(_BURST / once)))
        alone[rows] = (
            once if length == 1 else min(once, _shortest(partial(chains, length)) / length)
        )
        beside[rows] = _shortest(terms)
        stage.clear()
    return alone, beside


def time_systems(runner: SystemRunner) -> dict[int, float]:
    """Seconds of a step of systems by its evaluations."""
    found = {}
    for rows in _sizes(runner.batch):
        begun = time.perf_counter()
        evaluations, steps = rehearse_systems(runner, rows)
        seconds = time.perf_counter() - begun
        found[evaluations // steps] = seconds / steps
    return found


def _sizes(most: int) -> list[int]:
    """One row, a full batch, and a few sizes between."""
    return sorted({1, most, *(8**i for i in range(1, 4) if 8**i < most)})


def _shortest(act: Callable[[], object]) -> float:
    """Of a few tries: whatever else the machine does only makes them longer."""
    found = math.inf
    for _ in range(_TRIES):
        begun = time.perf_counter()
        act()
        found = min(found, time.perf_counter() - begun)
    return found


def rehearse_systems(runner: SystemRunner, rows: int) -> tuple[int, int]:
    """Two steps of so many systems that see everything; their evaluations, and how many steps."""
    model = runner.model
    known = torch.ones(1, *model.event, dtype=torch.bool)
    if model.space.kind == "bits":
        seen = Observation.of_bits(torch.zeros(1, *model.event), known)
    else:
        seen = Observation.of_reals(torch.zeros(1, *model.event), known, 1.0)
    course = Filter(Ancestral(steps=min(2, model.T)).plan(model), 1, twist=_DIAGONAL)
    job = SystemJob.of("", model, 1, course, seen, rows)
    runner.open(_OTHERS, job)
    for unit in range(job.units):
        entries = [Entry(_OTHERS, row, 0, unit) for row in range(job.rows)]
        runner.run(entries, [])
    runner.receive(runner.collect(entries, entries))  # waits for the device
    runner.close(_OTHERS)
    return job.cost, job.units


def make_exact(runner: Runner) -> bool:
    """Whether rows get the same bits alone and among others, wherever they stand.

    Where calls are filled up and that is not so, they are filled up to whole vectors.
    """
    calls = runner.calls
    fill = calls.fill
    if fill == 0:
        return False
    for calls.fill in (fill, -(-fill // _VECTOR) * _VECTOR):
        if _exact(runner):
            return True
    calls.fill = fill
    return False


def _exact(runner: Runner) -> bool:
    calls = runner.calls
    return all(
        _places_do_not_matter(model, calls.fill) for model in {calls.model, calls.sampling}
    ) and _company_does_not_matter(runner)


def _places_do_not_matter(model: DiffusionModel, rows: int) -> bool:
    """Random rows at random steps, in random other places, some of them several times."""
    dice = torch.Generator().manual_seed(0)
    x_t = torch.randn(rows, *model.event, generator=dice)
    x_t = ((x_t > 0).float() if model.space.kind == "bits" else x_t).to(model.device)
    t = torch.randint(1, model.T + 1, (rows,), generator=dice).to(model.device)
    whole = _numbers(model.predict(x_t, t), t)
    for _ in range(_SHUFFLES):
        i = torch.randint(rows, (rows,), generator=dice).to(model.device)
        found = _numbers(model.predict(x_t[i], t[i]), t[i])
        if not all(torch.equal(a, b[i]) for a, b in zip(found, whole, strict=True)):
            return False
    return True


def _numbers(prediction: Prediction, t: Tensor) -> list[Tensor]:
    """Everything that a prediction says."""
    kernel = prediction.kernel(t - 1)
    if isinstance(kernel, Normal):
        return [prediction.x_0, kernel.mean, kernel.var.expand_as(kernel.mean)]
    assert isinstance(kernel, Bernoulli)  # there are two families
    return [prediction.x_0, kernel.logits]


def _company_does_not_matter(runner: Runner) -> bool:
    """One chain and one term: alone, apart, beside chains and terms, and in a burst."""
    fill = min(runner.calls.fill, runner.batch)
    stage = _Stage(runner, fill)
    chains: list[Tensor] = []
    terms: list[Tensor] = []
    companies = [(0, 0), (fill // 2, fill - 2 - fill // 2), (fill - 2, 0), (0, fill - 2)]
    for others, other_terms in companies if fill > 2 else []:
        for unit in range(stage.steps):
            stage.run(others, other_terms, unit=unit)
        chains.append(runner.chains.x[0].clone())
        terms.append(runner.data.values[0, stage.units].clone())
    for unit in range(stage.steps):
        stage.run(0, 0, unit=unit, own_term=False)
        stage.run(0, 0, unit=unit, own_chain=False)
    chains.append(runner.chains.x[0].clone())
    terms.append(runner.data.values[0, stage.units].clone())
    stage.run(0, 0, own_term=False, length=stage.steps)
    chains.append(runner.chains.x[0].clone())
    stage.clear()
    return all(torch.equal(x, found[0]) for found in (chains, terms) for x in found)


@final
class _Stage:
    """Jobs that are open for a rehearsal: one chain and one term of our own, in slot 0, and others.

    Args:
        runner: whose ticks are rehearsed.
        rows: how many others there may be.
        most: steps of the chains.
    """

    def __init__(self, runner: Runner, rows: int, most: int = 3) -> None:
        self._runner = runner
        model = runner.model
        plan = Ancestral(steps=min(most, model.T)).plan(model)
        self.steps = len(plan)
        convention = model.space.default_convention
        steps = choose_steps(model.T, torch.arange(1), 0, convention)
        x_0 = torch.zeros(1, *model.event)
        runner.open(_OTHERS, ChainJob("", rows, 2, plan))
        runner.open(_CHAIN, ChainJob("", 1, 1, plan))
        runner.open(_TERM, TermJob("", x_0, 1, steps, convention))
        runner.open(_OTHER_TERMS, TermJob("", x_0, 2, steps, convention))
        # Terms of the last step come first and are worked out apart: take some of both kinds.
        self.units = [0, steps.count // 2, steps.count - 1][: self.steps]

    def run(
        self,
        others: int,
        other_terms: int,
        *,
        unit: int = 0,
        own_chain: bool = True,
        own_term: bool = True,
        length: int = 1,
    ) -> None:
        """One tick at the `unit`-th step."""
        at = self.units[unit]
        chains = [Entry(_OTHERS, row, own_chain + row, unit) for row in range(others)]
        terms = [Entry(_OTHER_TERMS, 0, 1, (at + row) % 2) for row in range(other_terms)]
        if own_chain:
            chains.append(Entry(_CHAIN, 0, 0, unit))
        if own_term:
            terms.append(Entry(_TERM, 0, 0, at))
        self._runner.run(chains, terms, length)

    def clear(self) -> None:
        """Close the jobs."""
        for key in range(_OTHERS, 0):
            self._runner.close(key)
