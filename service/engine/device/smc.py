"""SMCRunner: the next steps of a wave of particle systems of one job.

    state <- kernel.step(model, state, position)        (`diffusion.posterior.smc`)

This is the code of the offline loop, so a served answer is the offline one. The state is a value
that is replaced when a batch has been computed, so one that failed can be tried again; where memory
ran out, in the network's backward pass, with fewer rows at once.

Which systems, and how many steps, is the scheduler's choice. Steps wait for the device where a
covariance has been worked out or particles may have to be resampled.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.model import DiffusionModel
from diffusion.posterior.smc import Particles, SMCResult
from service.engine.device.batches import CollectedRows
from service.engine.device.runner import Runner
from service.engine.device.transfer import upload
from service.engine.jobs import Job, SMCJob
from service.engine.results import Peek, PosteriorResult
from service.engine.scheduling.batch import Batch


@final
class SMCRunner(Runner):
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
        self._jobs: dict[int, SMCJob] = {}
        self._waves: dict[int, Particles] = {}
        self._found: dict[int, list[SMCResult]] = {}
        self._compiled = compiled

    @override
    def rows_at_once(self, batch: Batch) -> int:
        return min(batch.rows, self.batch_size)

    @override
    def open(self, key: int, job: Job) -> None:
        """Get ready for entries of this job, of systems."""
        assert isinstance(job, SMCJob)  # other kinds have a runner of their own
        self._jobs[key], self._found[key] = job, []

    @override
    def close(self, key: int) -> None:
        """Forget the job."""
        for held in (self._jobs, self._waves, self._found):
            held.pop(key, None)

    @override
    def run(self, batch: Batch) -> None:
        """The next steps of a wave of one job; of a single system perhaps a piece of a step."""
        chains, piece = batch.chains, batch.piece
        begun = self.fence.begin()
        (key, row, _, position), job = chains[0], self._jobs[chains[0].key]
        # Gradients go through what is made here, which inference tensors do not allow.
        with torch.inference_mode(False), torch.no_grad(), self._as_written():
            systems = self._waves.get(key) or self._begin(job, row, len(chains))
            for i in range(position, position + batch.num_steps):
                systems = job.kernel.step(self.model, systems, i, self.batch_size, piece)
        self._waves[key] = systems
        self.fence.wait(begun, batch.num_steps)

    def _as_written(self) -> AbstractContextManager[object]:
        return torch.compiler.set_stance("force_eager") if self._compiled else nullcontext()

    def _begin(self, job: SMCJob, first: int, count: int) -> Particles:
        """So many systems of a job at x_T."""
        device, number = self.model.device, torch.arange(first, first + count)
        example = number // job.each

        def there(part: Tensor) -> Tensor:
            return upload(part, device)

        seen = job.observation.rows(example).each(there)
        systems = job.kernel.begin(self.model, seen, job.seed, there(number))
        return systems.multiplied([factor.rows(example).each(there) for factor in job.factors])

    @override
    def collect(self, batch: Batch) -> CollectedRows:
        """Send what a finished wave found to the host."""
        chains, ends, num_steps = batch.chains, batch.ends, batch.num_steps
        if not chains:  # the job has gone
            return CollectedRows([], [], num_steps, torch.ones(0, dtype=torch.bool), [], None)
        key = chains[0].key
        systems, job = self._waves[key], self._jobs[key]
        with torch.inference_mode(False), torch.no_grad():
            lost = systems.log_w.isnan().any(1) | systems.log_evidence.isnan()
            for x in (systems.x, systems.x_0):
                lost |= ~x.flatten(1).isfinite().all(1)
            leaving = [~lost]
            if ends:
                leaving += SMCResult.of(self.model, job.kernel, self._waves.pop(key)).tensors()
            (finite, *parts), wait = self._copies.send(leaving)
        ended = [(key, list(ends))] if ends else []
        return CollectedRows(list(chains), ended, num_steps, finite, parts, wait)

    @override
    def receive(self, collected: CollectedRows) -> dict[int, str]:
        """Take a wave's findings in, once they are there; it waits for them.

        Returns:
            The job, if a system of it left the finite numbers, and what happened to it.
        """
        collected.wait()
        for key, _ in collected.ends:
            if key in self._jobs:  # not given up meanwhile
                self._found[key].append(SMCResult(self._jobs[key].width, *collected.parts))
        for entry, good in zip(collected.chains, collected.finite.tolist(), strict=True):
            job = self._jobs.get(entry.key)
            if not good and job is not None:
                step = f"step {entry.position + collected.num_steps} of {job.positions}"
                what = f"the particles of example {entry.row // job.each} became NaN or infinite by"
                return {entry.key: f"{what} {step}"}
        return {}

    @override
    def result(self, key: int, queue_seconds: float, compute_seconds: float) -> PosteriorResult:
        """The answer of a job whose systems have all been collected."""
        return PosteriorResult(
            result=SMCResult.joined(self._found[key]),
            queue_seconds=queue_seconds,
            compute_seconds=compute_seconds,
            network_evaluations=self._jobs[key].cost,
            batch_invariant=self.batch_invariant,
        )

    @override
    def peek(self, key: int, rows: int, started: int, slots: Mapping[int, int], done: int) -> Peek:
        """The first `rows` samples of a job between batches: the first particles of each system.

        Args:
            key: of the job.
            rows: at most.
            started: how many systems have.
            slots: by number, of systems that have not ended.
            done: network evaluations the job has had.
        """
        draws = self._jobs[key].kernel.draws
        finished = [system not in slots for system in range(started) for _ in range(draws)][:rows]
        with torch.inference_mode(False), torch.no_grad():
            samples = torch.zeros(len(finished), *self.model.event)
            ended = [result.samples.flatten(0, 1) for result in self._found[key]]
            running = finished.count(False)
            estimates = samples[:0].to(self.model.device)
            if running:
                estimates = self._waves[key].x_0[:, :draws].flatten(0, 1)[:running].clone()
            if ended:
                known = torch.cat(ended)[: len(finished)]
                samples[: len(known)] = known
            return Peek.of(done, finished, samples, estimates)
