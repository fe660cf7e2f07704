"""Before a model is served: find its batch size, warm it up, test whether it is batch invariant.

- The best size of a network call is a few rows for a U-Net on a CPU, and thousands for a small
  network: `survey` finds it by trying.
- Warm-up batches let allocators and kernels settle and tell how long a step takes.
- `make_batch_invariant` tests the claim of the deterministic mode on this machine: the bits of a
  row depend neither on the other rows of its batch nor on its place among them.

Each is done in steps that take a batch's time, so that the engine can serve its other models in
between: they are generators that yield after each, and return what they found.
"""

import math
import statistics
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, final

import torch
from torch import Tensor

from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.twist import Twist
from diffusion.process import Prediction
from diffusion.samplers import Ancestral, begin
from service.engine.device.network import something_seen
from service.engine.device.runner import ChainRunner
from service.engine.device.smc import SMCRunner
from service.engine.faults import out_of_memory
from service.engine.jobs import BoundJob, SampleJob, SMCJob
from service.engine.scheduling.batch import Batch, Entry, Lane
from service.engine.scheduling.scheduler import MULTI_STEP_SECONDS
from service.settings import Settings

_SIZES = [2**i for i in range(13)]  # 1 to 4096
_LONGEST = 0.25  # seconds of a batch: a new job waits for it
_LOSS = 8  # a call's fixed time is at most 1 / 8 of what its rows take
_TRIES, _ALONE = 3, 10  # of each size, and of one row
FIXED = 32  # of the deterministic mode, where another size would be other bits
_HELD = 2**28  # bytes that all slots of a kind may take
_SHARE = 8  # and at most 1 / 8 of the bytes that all requests may hold
_MOST = 2**15  # slots: there is no room for more requests, by what each holds at least

_SHUFFLES = 16
_LANE = Lane("")  # of warm-up batches; runners do not read it
# Elements that a CPU's kernels take at once, at most (two registers of AVX-512). Those left over at
# the end of a tensor go through other code, with other bits, which tells their rows by their place.
_VECTOR = 32
_T = TypeVar("_T")
Steps = Generator[None, None, _T]  # of a warm-up; what it found is returned

_DIAGONAL = Twist(covariance="diagonal")
_OTHERS, _CHAIN, _TERM, _OTHER_TERMS = range(-4, 0)  # keys of jobs, in the order of a batch


@dataclass(frozen=True)
class Capacity:
    """How much of a model's work fits at once.

    Attributes:
        batch_size: most rows of a batch.
        slots: most chains, and most examples, held at once.
    """

    batch_size: int
    slots: int


def finish(steps: Steps[_T]) -> _T:
    """Do all steps at once; what they found."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: _T = end.value
            return found


def survey(model: DiffusionModel, rows: int, settings: Settings) -> Steps[Capacity]:
    """A model's capacity: what the settings leave open is found by trying.

    Args:
        model: on its device.
        rows: most rows of a batch; 0 where that is to be found.
        settings: of the service.
    """
    if rows == 0:
        rows = FIXED if settings.deterministic else (yield from _best_batch(model))
    batch_size = rows
    return Capacity(
        batch_size, settings.slots or _slots(model, batch_size, settings.max_queue_bytes)
    )


def _best_batch(model: DiffusionModel) -> Steps[int]:
    """The fewest rows next to which a network call's fixed time is small.

    A call of k rows takes about a + b k. 1 / b is the best rate of all sizes, a + b the time of one
    row, and the first power of two with b k >= 8 a is taken: both are measured far from that size,
    so that small differences between its neighbours do not decide.
    """
    seconds: dict[int, float] = {}
    for size in _SIZES:
        try:
            seconds[size] = _seconds(model, size)
        except Exception as error:
            if not seconds or not out_of_memory(error):
                raise
            break
        yield
        if 2 * seconds[size] > _LONGEST:
            break
    # Other sizes come between the tries of each, so that a slow moment is not one size's alone.
    for _ in range(_TRIES - 1):
        for size in seconds:
            seconds[size] = min(seconds[size], _seconds(model, size))
            yield
    alone = min(seconds[1], *(_seconds(model, 1) for _ in range(_ALONE)))
    yield
    rate = max(size / taken for size, taken in seconds.items())
    wanted = _LOSS * (alone * rate - 1)
    return next((size for size in seconds if size >= wanted), max(seconds))


@torch.inference_mode()
def _seconds(model: DiffusionModel, rows: int) -> float:
    """A network call's; on a CPU the thread's own time, for others may use it as well."""
    clock = time.thread_time if model.device.type == "cpu" else time.perf_counter
    noise = counter_noise(0, torch.arange(rows, device=model.device), model.T + 1)
    x_t = begin(model, noise, None, rows)
    t = torch.full((rows,), model.T, device=model.device)
    model.predict(x_t, t).x_0.sum().item()  # the first of a size is another one
    begun = clock()
    model.predict(x_t, t).x_0.sum().item()  # waits for the device
    return clock() - begun


def _slots(model: DiffusionModel, batch_size: int, room: int) -> int:
    """As many as memory allows: x_t, x_0hat, what was seen, and terms.

    A job without a slot waits for others to end, however short it is. So there is one for the first
    row of every job that the queue can hold. On a CPU only slots that are used take memory.
    """
    size = 4 * (4 * math.prod(model.event) + model.T * model.space.parts)
    held = _HELD if model.device.type == "cpu" else _HELD // 4
    return max(2 * batch_size, min(held // size, room // _SHARE // size, _MOST))


def warm_up(runner: ChainRunner, rows: int) -> None:
    """A batch of `rows` rows, with chains and a term in it."""
    jobs = _WarmUpJobs(runner, rows)
    jobs.run(max(1, rows - 1), 0, own_chain=False, own_term=rows > 1)
    jobs.close()


def time_steps(runner: ChainRunner) -> Steps[tuple[dict[int, float], dict[int, float]]]:
    """Seconds of a step by rows: of chains alone, which advance several a batch, and of terms."""
    alone, terms = {}, {}
    for rows in _sizes(runner.batch_size):
        jobs = _WarmUpJobs(runner, rows, runner.model.T)
        run = partial(jobs.run, own_chain=False, own_term=False)
        once = several = yield from _usual(partial(run, rows, 0))
        num_steps = max(1, min(jobs.steps, int(MULTI_STEP_SECONDS / once)))
        if num_steps > 1:
            several = yield from _usual(partial(run, rows, 0, num_steps=num_steps))
        alone[rows] = min(once, several / num_steps)
        terms[rows] = yield from _usual(partial(run, 0, rows))
        jobs.close()
    return alone, terms


def time_systems(runner: SMCRunner) -> Steps[dict[int, float]]:
    """Seconds of a step of systems by its evaluations."""
    found = {}
    for rows in _sizes(runner.batch_size):
        warm_up_systems(runner, rows)  # the first of a size is another one
        yield
        begun = time.perf_counter()
        evaluations, steps = warm_up_systems(runner, rows)
        seconds = time.perf_counter() - begun
        found[evaluations // steps] = seconds / steps
        yield
    return found


def _sizes(most: int) -> list[int]:
    """One row, a full batch, and a few sizes between."""
    return sorted({1, most, *(8**i for i in range(1, 4) if 8**i < most)})


def _usual(act: Callable[[], object]) -> Steps[float]:
    """Seconds: the median of a few tries after a first one; the shortest may be luck."""
    act()
    yield
    seconds = []
    for _ in range(_TRIES):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
        yield
    return statistics.median(seconds)


def warm_up_systems(runner: SMCRunner, rows: int) -> tuple[int, int]:
    """Two steps of `rows` systems that see everything; their evaluations, and the steps."""
    model = runner.model
    known = torch.ones(1, *model.event, dtype=torch.bool)
    values = torch.zeros(1, *model.event)
    seen = model.process.saw(values, known, torch.full_like(values, 0.25))
    kernel = ParticleFilter(Ancestral(steps=min(2, model.T)).plan(model), 1, twist=_DIAGONAL)
    job = SMCJob.of("", model, 1, kernel, seen, rows)
    runner.open(_OTHERS, job)
    for position in range(job.positions):
        entries = [Entry(_OTHERS, row, 0, position) for row in range(job.rows)]
        runner.run(Batch(_LANE, entries))
    runner.receive(runner.collect(Batch(_LANE, entries, ends=entries)))  # waits for the device
    runner.close(_OTHERS)
    return job.cost, job.positions


def make_batch_invariant(runner: ChainRunner) -> Steps[bool]:
    """Whether rows get the same bits alone and among others, wherever they stand.

    Where calls are padded and that is not so, they are padded to whole vectors.
    """
    calls = runner.calls
    pad_to = calls.pad_to
    if pad_to == 0:
        return False
    for calls.pad_to in (pad_to, -(-pad_to // _VECTOR) * _VECTOR):
        if (yield from _batch_invariant(runner)):
            return True
    calls.pad_to = pad_to
    return False


def _batch_invariant(runner: ChainRunner) -> Steps[bool]:
    calls = runner.calls
    for model in {calls.model, calls.sampling}:
        if not (yield from _same_in_any_place(model, calls.pad_to)):
            return False
    return (yield from _same_beside_others(runner))


def _same_in_any_place(model: DiffusionModel, rows: int) -> Steps[bool]:
    """Random rows at random steps, in random other places, some of them several times."""
    dice = torch.Generator().manual_seed(0)
    noise = counter_noise(0, torch.arange(rows, device=model.device), 0)
    x_t = model.process.prior(model.event, rows).sample(noise)
    t = torch.randint(1, model.T + 1, (rows,), generator=dice).to(model.device)
    seen = something_seen(model, rows)
    whole = _numbers(model.predict(x_t, t, observation=seen), t)
    for _ in range(_SHUFFLES):
        yield
        i = torch.randint(rows, (rows,), generator=dice).to(model.device)
        found = _numbers(model.predict(x_t[i], t[i], observation=seen.rows(i)), t[i])
        if not all(torch.equal(a, b[i]) for a, b in zip(found, whole, strict=True)):
            return False
    return True


def _numbers(prediction: Prediction, t: Tensor) -> list[Tensor]:
    """Everything that a prediction says."""
    kernel = prediction.kernel(t - 1)
    return [prediction.x_0, *kernel.tensors]


def _same_beside_others(runner: ChainRunner) -> Steps[bool]:
    """One chain and one term: alone, apart, beside chains and terms, and in a multi-step batch."""
    pad_to = min(runner.calls.pad_to, runner.batch_size)
    jobs = _WarmUpJobs(runner, pad_to)
    chains: list[Tensor] = []
    terms: list[Tensor] = []
    others_and_terms = [
        (0, 0),
        (pad_to // 2, pad_to - 2 - pad_to // 2),
        (pad_to - 2, 0),
        (0, pad_to - 2),
    ]
    for others, other_terms in others_and_terms if pad_to > 2 else []:
        for position in range(jobs.steps):
            jobs.run(others, other_terms, position=position)
            yield
        chains.append(runner.chains.x[0].clone())
        terms.append(runner.terms.values[0, jobs.positions].clone())
    for position in range(jobs.steps):
        jobs.run(0, 0, position=position, own_term=False)
        jobs.run(0, 0, position=position, own_chain=False)
    chains.append(runner.chains.x[0].clone())
    terms.append(runner.terms.values[0, jobs.positions].clone())
    jobs.run(0, 0, own_term=False, num_steps=jobs.steps)
    chains.append(runner.chains.x[0].clone())
    jobs.close()
    return all(torch.equal(x, found[0]) for found in (chains, terms) for x in found)


@final
class _WarmUpJobs:
    """Open jobs for warm-up batches: one chain and one term of our own, in slot 0, and others.

    Args:
        runner: what runs the batches.
        rows: how many others there may be.
        most: steps of the chains.
    """

    def __init__(self, runner: ChainRunner, rows: int, most: int = 3) -> None:
        self._runner = runner
        model = runner.model
        plan = Ancestral(steps=min(most, model.T)).plan(model)
        self.steps = len(plan)
        convention = model.space.default_convention
        steps = choose_steps(model.T, torch.arange(1), 0, convention)
        x_0 = torch.zeros(1, *model.event)
        runner.open(_OTHERS, SampleJob("", rows, 2, plan))
        runner.open(_CHAIN, SampleJob("", 1, 1, plan))
        runner.open(_TERM, BoundJob("", x_0, 1, steps, convention))
        runner.open(_OTHER_TERMS, BoundJob("", x_0, 2, steps, convention))
        # Terms of the last step come first and are worked out apart: take some of both kinds.
        self.positions = [0, steps.count // 2, steps.count - 1][: self.steps]

    def run(
        self,
        others: int,
        other_terms: int,
        *,
        position: int = 0,
        own_chain: bool = True,
        own_term: bool = True,
        num_steps: int = 1,
    ) -> None:
        """One batch at the `position`-th step, waited for."""
        at = self.positions[position]
        chains = [Entry(_OTHERS, row, own_chain + row, position) for row in range(others)]
        terms = [Entry(_OTHER_TERMS, 0, 1, (at + row) % 2) for row in range(other_terms)]
        if own_chain:
            chains.append(Entry(_CHAIN, 0, 0, position))
        if own_term:
            terms.append(Entry(_TERM, 0, 0, at))
        batch = Batch(_LANE, chains, terms, num_steps=num_steps)
        self._runner.run(batch)
        self._runner.receive(self._runner.collect(batch))

    def close(self) -> None:
        """Close the jobs."""
        for key in range(_OTHERS, 0):
            self._runner.close(key)
