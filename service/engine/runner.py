"""One tick of one model: a single network call on rows of any jobs, at any steps.

    prediction = network(chains' x_t and terms' x_t ~ q(x_t | x_0), joined)
    chains: x_s by `diffusion.sampling.advance`;    terms: nats by `diffusion.bound.evaluate`

No policy: which rows, in which slots, is the scheduler's choice. Until everything of a tick has
been computed nothing is written back, so one that failed can be tried again, whole or in parts.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from diffusion.bound import closed_last, combine, evaluate, prior_part
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.plan import Ancestral
from diffusion.prediction import Prediction
from diffusion.sampling import advance, begin, burst
from diffusion.strata import choose_steps
from service.engine.batches import TermBatch, by_job, gather_chains, gather_terms
from service.engine.jobs import ChainJob, ChainResult, Job, TermJob, TermResult
from service.engine.scheduler import Entry
from service.engine.slots import ChainSlots, DatumSlots, rows_of, to_device


@final
class Runner:
    """The device's side of one model.

    Args:
        model: the model, on its device.
        slots: most chains, and most data, held at once.
    """

    def __init__(self, model: DiffusionModel, slots: int) -> None:
        self.model = model
        self._chain_slots = ChainSlots(model, slots)
        self._datum_slots = DatumSlots(model, slots)
        self._chains: dict[int, ChainJob] = {}
        self._terms: dict[int, TermJob] = {}
        self._results: dict[int, Tensor] = {}  # samples, or values of terms, as they come

    def open(self, key: int, job: Job) -> None:
        """Get ready for entries of this job."""
        # The caller gets these tensors, so they must not be inference tensors.
        with torch.inference_mode(False):
            if isinstance(job, TermJob):
                self._terms[key] = job
                self._results[key] = torch.zeros(job.rows, job.units, dtype=torch.float64)
                self._datum_slots.reserve(job.units)
            else:
                self._chains[key] = job
                self._results[key] = torch.zeros(job.rows, *self.model.event)

    def close(self, key: int) -> None:
        """Forget the job."""
        for held in (self._chains, self._terms, self._results):
            held.pop(key, None)

    def run(self, chains: Sequence[Entry], terms: Sequence[Entry], length: int = 1) -> None:
        """The tick: one network call, then one update of the chains and one of the terms.

        Args:
            chains: entries of chains.
            terms: entries of terms.
            length: steps of each chain; more than one where there are no terms.
        """
        chains, terms = sorted(chains), sorted(terms)  # by job; places in a batch mean nothing
        self._admit(chains, terms)
        device, state = self.model.device, self._chain_slots
        parts: list[tuple[Tensor, Tensor]] = []
        if chains:
            rows = gather_chains(chains, length, self._chains, device)
            x_t, previous = state.x[rows.slots], state.previous[rows.slots]
            seen = state.observation(rows.slots) if rows.observed else None
            if length > 1:
                found = burst(self.model, x_t, previous, rows.update, rows.seed, rows.row, seen)
                state.advance(rows.slots, *found)
                return
            parts.append((x_t, rows.update.t))
        if terms:
            data = gather_terms(terms, self._terms, device)
            x_0 = self._datum_slots.x_0[data.slots]
            parts.append((self.model.process.marginal(x_0, data.t).sample(data.noise), data.t))
        whole, t = (torch.cat(column) for column in zip(*parts, strict=True))
        prediction = self.model.predict(whole, t)
        cut = len(chains)
        if terms:
            of_terms = prediction.rows(slice(cut, None))
            values = self._evaluate(data, of_terms, x_0, whole[cut:])
        if chains:
            of_chains = prediction.rows(slice(0, cut))
            x_s = advance(of_chains, x_t, previous, rows.update, rows.noise, seen)
            state.advance(rows.slots, x_s, of_chains.x_0)
        if terms:
            self._datum_slots.values[data.slots, data.units] = values

    def collect(self, ends: Sequence[Entry]) -> None:
        """Copy the results of finished rows off their slots."""
        chains = [entry for entry in ends if entry.key in self._chains]
        terms = [entry for entry in ends if entry.key in self._terms]
        if chains:
            x_0 = self._chain_slots.x[self._slots(chains)].cpu()
            for entry, sample in zip(chains, x_0, strict=True):
                self._results[entry.key][entry.row] = sample
        if terms:
            values = self._datum_slots.values[self._slots(terms)].cpu()
            for entry, row in zip(terms, values, strict=True):
                self._results[entry.key][entry.row] = row[: self._terms[entry.key].units]

    def broken(
        self, chains: Sequence[Entry], ends: Sequence[Entry], length: int = 1
    ) -> dict[int, str]:
        """Jobs with a row that left the finite numbers, and what happened to it.

        Args:
            chains: entries of chains, looked at on the device.
            ends: entries of finished rows, collected; of these the terms are looked at.
            length: as `run` was given it.
        """
        found: dict[int, str] = {}
        if chains:
            finite = self._chain_slots.finite[self._slots(chains)].tolist()
            for entry, good in zip(chains, finite, strict=True):
                if not good:
                    t = int(self._chains[entry.key].plan.t[entry.unit + length - 1])
                    found[entry.key] = f"sample {entry.row} became NaN or infinite by step t = {t}"
        for entry in ends:
            job = self._terms.get(entry.key)
            if job is not None:
                values = self._results[entry.key][entry.row]
                # Minus infinity is an answer: the model holds the datum to be impossible.
                wrong = values.isnan() | values.isposinf()
                if bool(wrong.any()):
                    t = int(job.steps.t[entry.row][wrong][0])
                    found[entry.key] = f"the bound of datum {entry.row} has no finite term t = {t}"
        return found

    def result(
        self, key: int, queue_seconds: float, compute_seconds: float
    ) -> ChainResult | TermResult:
        """The answer of a job whose rows have all been collected."""
        if key in self._chains:
            return ChainResult(
                samples=self._results[key],
                queue_seconds=queue_seconds,
                compute_seconds=compute_seconds,
                network_evaluations=self._chains[key].cost,
            )
        job, values = self._terms[key], self._results[key]
        with torch.inference_mode(False), torch.no_grad():
            x_0 = job.x_0.to(self.model.device)
            prior = prior_part(self.model, x_0, job.convention).cpu()
            last = closed_last(self.model, x_0, job.convention)
            found = combine(job.steps, values, prior, None if last is None else last.cpu())
        return TermResult(
            bound=found,
            steps=job.steps,
            values=values,
            queue_seconds=queue_seconds,
            compute_seconds=compute_seconds,
            network_evaluations=job.cost,
        )

    def _admit(self, chains: Sequence[Entry], terms: Sequence[Entry]) -> None:
        """Write the state of rows at their first unit, job by job: jobs bring their own data."""
        device = self.model.device
        for key, entries in by_job([entry for entry in chains if entry.unit == 0]):
            job = self._chains[key]
            rows = torch.tensor([entry.row for entry in entries])
            seen = None
            if job.observation is not None:
                seen = to_device(rows_of(job.observation, rows), device)
            if job.start is not None:
                x = job.start[rows].to(device)
            else:
                noise = counter_noise(job.seed, rows.to(device), self.model.T + 1, Stream.CHAIN)
                x = begin(self.model, noise, seen, len(rows))
            self._chain_slots.write(self._slots(entries), x, seen)
        for key, entries in by_job([entry for entry in terms if entry.unit == 0]):
            x_0 = self._terms[key].x_0[[entry.row for entry in entries]]
            self._datum_slots.x_0[self._slots(entries)] = x_0.to(device)

    def _evaluate(
        self, batch: TermBatch, prediction: Prediction, x_0: Tensor, x_t: Tensor
    ) -> Tensor:
        values = torch.zeros(len(batch.t), device=self.model.device)
        for convention in set(batch.conventions):
            these = [i for i, other in enumerate(batch.conventions) if other == convention]
            i = slice(None) if len(these) == len(values) else torch.tensor(these, device=x_t.device)
            part = prediction.rows(i)
            found = evaluate(self.model, part, x_0[i], x_t[i], batch.t[i], convention)
            values[i] = found.to(values.dtype)
        return values

    def _slots(self, entries: Sequence[Entry]) -> Tensor:
        return torch.tensor([entry.slot for entry in entries], device=self.model.device)


def rehearse(runner: Runner, rows: int) -> None:
    """A tick of `rows` rows that nobody asked for, with chains and a term in it."""
    model = runner.model
    plan = Ancestral(steps=1).plan(model)
    convention = model.space.default_convention
    steps = choose_steps(model.T, torch.arange(1), 0, convention)
    x_0 = torch.zeros(1, *model.event)
    runner.open(-1, ChainJob("", rows, 0, plan))
    runner.open(-2, TermJob("", x_0, 0, steps, convention))
    chains = [Entry(-1, row, row, 0) for row in range(max(1, rows - 1))]
    runner.run(chains, [Entry(-2, 0, 0, 0)] if rows > 1 else [])
    runner.collect(chains)  # waits for the device
    runner.close(-1)
    runner.close(-2)
