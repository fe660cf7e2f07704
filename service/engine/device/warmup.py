"""Rehearsals: ticks that nobody asked for, before the first that somebody did.

They let allocators and kernels settle, tell how long a tick takes, and try the claim of the
deterministic mode on this machine: that a row's bits depend on neither its company nor its place.
"""

import math
import time
from collections.abc import Callable
from functools import partial
from typing import final

import torch
from torch import Tensor

from diffusion.likelihood.estimator import choose_steps
from diffusion.model import DiffusionModel
from diffusion.noise import counter_noise
from diffusion.observation import in_model_units
from diffusion.operators import Mask
from diffusion.plan import Ancestral
from diffusion.posterior.particle_filter import ParticleFilter
from diffusion.posterior.twist import Twist
from diffusion.prediction import Prediction
from service.engine.device.runner import Runner
from service.engine.device.smc import SystemRunner
from service.engine.jobs import ChainJob, SystemJob, TermJob
from service.engine.scheduling.batch import Entry

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
    values = torch.zeros(1, *model.event)
    seen, _ = in_model_units(model.space, Mask(), values, known, torch.tensor(0.25))
    course = ParticleFilter(Ancestral(steps=min(2, model.T)).plan(model), 1, twist=_DIAGONAL)
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
    noise = counter_noise(0, torch.arange(rows, device=model.device), 0)
    x_t = model.process.prior(model.event, rows).sample(noise)
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
    return [prediction.x_0, *kernel.tensors]


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
