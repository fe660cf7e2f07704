"""The runner of particle systems: it makes the next steps of a wave of systems of one job.

    state <- kernel.step(model, state, position)        (`diffusion.posterior.smc`)

The offline loop runs the same code, so a served answer is the offline one. The state is a value
that is replaced when a batch has been computed, so a batch that failed can be tried again; where
memory ran out in the network's backward pass, with fewer rows at once.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.posterior.smc import Particles, SMCResult
from service.engine.device.runner import Runner
from service.engine.device.transfer import Collected, upload
from service.engine.jobs import SMCJob
from service.engine.results import JobPreview, JobStats, PosteriorResult
from service.engine.scheduling.batch import Batch, by_job


@dataclass
class _OpenJob:
    """A job, the wave of its systems that is on its way, and what earlier waves found."""

    job: SMCJob
    wave: Particles | None = None
    found: list[SMCResult] = field(default_factory=list)


@final
class SMCRunner(Runner[SMCJob]):
    """The particle systems of one model.

    Args:
        model: the model, on its device, as it is: weights need every bit.
        rows: most rows that go through the network at once.
        batch_invariant: whether the device gives the same numbers every time.
        compiled: whether the network went through torch.compile, which keeps no graph to go back
            through more than once: then it is called as it was written.
    """

    def __init__(
        self,
        model: DiffusionModel,
        rows: int,
        *,
        batch_invariant: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(model, rows)
        self.batch_invariant = batch_invariant
        self._open: dict[int, _OpenJob] = {}
        self._compiled = compiled

    @override
    def rows_at_once(self, batch: Batch) -> int:
        return min(batch.network_rows, self.batch_size)

    @override
    def open(self, key: int, job: SMCJob) -> None:
        self._open[key] = _OpenJob(job)

    @override
    def close(self, key: int) -> None:
        self._open.pop(key, None)

    @override
    def run(self, batch: Batch) -> None:
        """The next steps of a wave of one job; of a single system perhaps a piece of a step."""
        chains, piece = batch.chains, batch.piece
        begun = self.timer.begin()
        (key, row, _, position), kernel = chains[0], self._open[chains[0].key].job.kernel
        # Gradients go through what is made here, which inference tensors do not allow.
        with torch.inference_mode(False), torch.no_grad(), self._as_written():
            systems = self._open[key].wave or self._begin(key, row, len(chains))
            for i in range(position, position + batch.num_steps):
                systems = kernel.step(self.model, systems, i, self.batch_size, piece)
        self._open[key].wave = systems
        self.timer.end(begun, batch.num_steps)

    def _as_written(self) -> AbstractContextManager[object]:
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _begin(self, key: int, first: int, count: int) -> Particles:
        """`count` systems of a job from number `first` on, at x_T."""
        job, device = self._open[key].job, self.model.device
        number = torch.arange(first, first + count)
        example = number // job.repeats

        def there(part: Tensor) -> Tensor:
            return upload(part, device)

        seen = job.observation.rows(example).each(there)
        systems = job.kernel.begin(self.model, seen, job.seed, there(number + job.first))
        return systems.multiplied([factor.rows(example).each(there) for factor in job.factors])

    @override
    def collect(self, batch: Batch) -> Collected:
        if not batch.chains:  # the job has ended
            return Collected(batch, [], torch.ones(0, dtype=torch.bool), [])
        opened = self._open[batch.chains[0].key]
        systems = opened.wave
        assert systems is not None  # it has run
        with torch.inference_mode(False), torch.no_grad():
            lost = systems.log_w.isnan().any(1) | systems.log_evidence.isnan()
            for x in (systems.x, systems.x_0):
                lost |= ~x.flatten(1).isfinite().all(1)
            leaving = [~lost]
            if batch.ends:
                leaving += SMCResult.of(self.model, opened.job.kernel, systems).tensors()
                opened.wave = None
            (finite, *parts), arrived = self._copies.send(leaving)
        return Collected(batch, by_job(batch.ends), finite, parts, arrived)

    @override
    def receive(self, collected: Collected) -> dict[int, str]:
        collected.wait()
        batch = collected.batch
        for key, _ in collected.ends:
            if key in self._open:  # it has not ended meanwhile
                job = self._open[key].job
                self._open[key].found.append(SMCResult(job.width, *collected.parts))
        for entry, finite in zip(batch.chains, collected.finite.tolist(), strict=True):
            if not finite and entry.key in self._open:
                job = self._open[entry.key].job
                step = f"step {entry.position + batch.num_steps} of {job.positions}"
                what = (
                    f"the particles of example {entry.row // job.repeats} became NaN or infinite by"
                )
                return {entry.key: f"{what} {step}"}
        return {}

    @override
    def result(self, key: int, stats: JobStats) -> PosteriorResult:
        return PosteriorResult(result=SMCResult.joined(self._open[key].found), stats=stats)

    @override
    def preview(
        self, key: int, rows: int, started: int, slots: Mapping[int, int], done: int
    ) -> JobPreview:
        """The first `rows` samples of a job between batches: the first particles of each system."""
        opened = self._open[key]
        draws = opened.job.kernel.draws
        finished = [system not in slots for system in range(started) for _ in range(draws)][:rows]
        with torch.inference_mode(False), torch.no_grad():
            samples = torch.zeros(len(finished), *self.model.event)
            ended = [result.samples.flatten(0, 1) for result in opened.found]
            if ended:
                known = torch.cat(ended)[: len(finished)]
                samples[: len(known)] = known
            estimates = samples[:0].to(self.model.device)
            running = finished.count(False)
            if running and opened.wave is not None:
                estimates = opened.wave.x_0[:, :draws].flatten(0, 1)[:running].clone()
            return JobPreview.of(done, finished, samples, estimates)
