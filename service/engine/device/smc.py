"""One tick of one model's systems of particles: the next steps of a wave of one job.

    state <- course.step(model, state, unit)        (`diffusion.posterior.smc`)

The very code of the offline loop, so a served answer is the offline one. The state is a value that
is replaced when a tick has been computed, so one that failed can be tried again; where memory ran
out, in the network's backward pass, with fewer rows at once.

No policy: which systems, and how many steps, is the scheduler's choice. Steps wait for the device
where a covariance has been worked out or particles may have to be resampled.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.posterior.smc import Particles, SMCResult
from service.engine.device.landing import Landing
from service.engine.jobs import Job, SystemJob
from service.engine.peek import Peek
from service.engine.results import SystemResult
from service.engine.scheduling.batch import Entry
from service.engine.transfer import Departures, Fence, upload


@final
class SystemRunner:
    """The device's side of one model's systems.

    Args:
        model: the model, on its device, as it is: weights need every bit.
        rows: most rows that go through the network at once.
        exact: whether the device gives the same numbers every time.
        compiled: whether the network went through torch.compile, which keeps no graph to go back
            through more than once: then it is called as it was written.

    Attributes:
        batch: most rows that go through the network at once now.
        exact: whether a job gets the same bits in any company.
        fill: rows that every tick is filled up to: none, for a wave is the same in any company.
        fence: between one tick and the next.
    """

    fill = 0

    def __init__(
        self, model: DiffusionModel, rows: int, *, exact: bool = False, compiled: bool = False
    ) -> None:
        self.model, self.batch, self.exact = model, rows, exact
        self._jobs: dict[int, SystemJob] = {}
        self._waves: dict[int, Particles] = {}
        self._found: dict[int, list[SMCResult]] = {}
        self._compiled = compiled
        self.fence, self._departures = Fence(model.device), Departures(model.device)

    def open(self, key: int, job: Job) -> None:
        """Get ready for entries of this job, of systems."""
        assert isinstance(job, SystemJob)  # other kinds have a runner of their own
        self._jobs[key], self._found[key] = job, []

    def close(self, key: int) -> None:
        """Forget the job."""
        for held in (self._jobs, self._waves, self._found):
            held.pop(key, None)

    def run(
        self,
        chains: Sequence[Entry],
        terms: Sequence[Entry],
        length: int = 1,
        piece: int | None = None,
    ) -> None:
        """The tick.

        Args:
            chains: entries of one job's systems, all of a wave, at the same unit.
            terms: none.
            length: units.
            piece: of a single system, how many more particles are looked at; all by default.
        """
        assert not terms  # they are another queue's
        begun = self.fence.begin()
        (key, row, _, unit), job = chains[0], self._jobs[chains[0].key]
        # Gradients go through what is made here, which inference tensors do not allow.
        with torch.inference_mode(False), torch.no_grad(), self._as_written():
            systems = self._waves.get(key) or self._begin(job, row, len(chains))
            for i in range(unit, unit + length):
                systems = job.course.step(self.model, systems, i, self.batch, piece)
        self._waves[key] = systems
        self.fence.wait(begun, length)

    def allow(self, rows: int) -> None:
        """At most so many rows go through the network at once, from now on."""
        # Another number of rows is other bits, also for who comes when it is the old one again.
        self.batch, self.exact = rows, False

    def _as_written(self) -> AbstractContextManager[object]:
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _begin(self, job: SystemJob, first: int, count: int) -> Particles:
        """So many systems of a job at x_T."""
        device, number = self.model.device, torch.arange(first, first + count)
        datum = number // job.each

        def there(part: Tensor) -> Tensor:
            return upload(part, device)

        seen = job.observation.rows(datum).each(there)
        systems = job.course.begin(self.model, seen, job.seed, there(number))
        return systems.multiplied([factor.rows(datum).each(there) for factor in job.factors])

    def collect(self, chains: Sequence[Entry], ends: Sequence[Entry], length: int = 1) -> Landing:
        """Send what a finished wave found to the host.

        Args:
            chains: entries of the tick, to be looked at whether they are finite.
            ends: all of them where the wave is over, or none.
            length: as `run` was given it.
        """
        if not chains:  # the job has gone
            return Landing([], [], length, torch.ones(0, dtype=torch.bool), [], None)
        key = chains[0].key
        systems, job = self._waves[key], self._jobs[key]
        with torch.inference_mode(False), torch.no_grad():
            lost = systems.log_w.isnan().any(1) | systems.log_evidence.isnan()
            for x in (systems.x, systems.x_0):
                lost |= ~x.flatten(1).isfinite().all(1)
            leaving = [~lost]
            if ends:
                leaving += SMCResult.of(self.model, job.course, self._waves.pop(key)).tensors()
            (finite, *parts), wait = self._departures.send(leaving)
        ended = [(key, list(ends))] if ends else []
        return Landing(list(chains), ended, length, finite, parts, wait)

    def receive(self, landing: Landing) -> dict[int, str]:
        """Take a wave's findings in, once they are there; it waits for them.

        Returns:
            The job, if a system of it left the finite numbers, and what happened to it.
        """
        landing.wait()
        for key, _ in landing.ends:
            if key in self._jobs:  # not given up meanwhile
                self._found[key].append(SMCResult(self._jobs[key].width, *landing.parts))
        for entry, good in zip(landing.chains, landing.finite.tolist(), strict=True):
            job = self._jobs.get(entry.key)
            if not good and job is not None:
                step = f"step {entry.unit + landing.length} of {job.units}"
                what = f"the particles of datum {entry.row // job.each} became NaN or infinite by"
                return {entry.key: f"{what} {step}"}
        return {}

    def result(self, key: int, queue_seconds: float, compute_seconds: float) -> SystemResult:
        """The answer of a job whose systems have all been collected."""
        return SystemResult(
            cloud=SMCResult.joined(self._found[key]),
            queue_seconds=queue_seconds,
            compute_seconds=compute_seconds,
            network_evaluations=self._jobs[key].cost,
            exact=self.exact,
        )

    def peek(self, key: int, rows: int, started: int, slots: Mapping[int, int], done: int) -> Peek:
        """The first `rows` samples of a job between ticks: the first particles of each system.

        Args:
            key: of the job.
            rows: at most.
            started: how many systems have.
            slots: by number, of systems that have not ended.
            done: network evaluations the job has had.
        """
        draws = self._jobs[key].course.draws
        finished = [system not in slots for system in range(started) for _ in range(draws)][:rows]
        with torch.inference_mode(False), torch.no_grad():
            samples = torch.zeros(len(finished), *self.model.event)
            ended = [cloud.samples.flatten(0, 1) for cloud in self._found[key]]
            running = finished.count(False)
            estimates = samples[:0].to(self.model.device)
            if running:
                estimates = self._waves[key].x_0[:, :draws].flatten(0, 1)[:running].clone()
            if ended:
                known = torch.cat(ended)[: len(finished)]
                samples[: len(known)] = known
            return Peek.of(done, finished, samples, estimates)
