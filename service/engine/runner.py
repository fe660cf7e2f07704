"""One tick of one model: a single network call on rows of any jobs, at any steps.

    prediction = network(chains' x_t and terms' x_t ~ q(x_t | x_0), joined)
    chains: x_s by `diffusion.sampling.advance`;    terms: nats by `diffusion.bound.evaluate`

No policy: which rows, in which slots, is the scheduler's choice. Until everything of a tick has
been computed nothing is written back, so one that failed can be tried again, whole or in parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch
from torch import Tensor

from diffusion.bound import closed_last, combine, evaluate, prior_part
from diffusion.model import DiffusionModel
from diffusion.noise import CounterNoise
from diffusion.prediction import Prediction
from diffusion.sampling import Ancestral, Update, advance, begin
from diffusion.space import Convention
from diffusion.strata import choose_steps, term_noise
from service.engine.jobs import ChainJob, ChainResult, Job, TermJob, TermResult
from service.engine.peek import Peek
from service.engine.scheduler import Entry
from service.engine.slots import ChainSlots, DatumSlots, rows_of, to_device


@dataclass(frozen=True)
class _Chains:
    """An open chain job: its plan as plain numbers, and where its samples go."""

    job: ChainJob
    t: list[int]
    s: list[int]
    linear: list[list[float]]
    samples: Tensor


@dataclass(frozen=True)
class _Terms:
    """An open term job, and where its terms' values go."""

    job: TermJob
    values: Tensor


@dataclass(frozen=True)
class _ChainBatch:
    slots: Tensor
    x_t: Tensor
    update: Update
    noise: CounterNoise


@dataclass(frozen=True)
class _TermBatch:
    slots: Tensor
    units: Tensor
    x_0: Tensor
    x_t: Tensor
    t: Tensor
    conventions: list[Convention]


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
        self._chains: dict[int, _Chains] = {}
        self._terms: dict[int, _Terms] = {}

    def open(self, key: int, job: Job) -> None:
        """Get ready for entries of this job."""
        # The caller gets these tensors, so they must not be inference tensors.
        with torch.inference_mode(False):
            if isinstance(job, TermJob):
                values = torch.zeros(job.rows, job.units, dtype=torch.float64)
                self._terms[key] = _Terms(job, values)
                self._datum_slots.reserve(job.units)
                return
            samples = torch.zeros(job.rows, *self.model.event)
        plan = job.plan
        self._chains[key] = _Chains(
            job, plan.t.tolist(), plan.s.tolist(), plan.linear.tolist(), samples
        )

    def close(self, key: int) -> None:
        """Forget the job."""
        self._chains.pop(key, None)
        self._terms.pop(key, None)

    def run(self, chains: Sequence[Entry], terms: Sequence[Entry]) -> None:
        """The tick: one network call, then one update of the chains and one of the terms."""
        self._admit(chains, terms)
        chain_batch = self._gather_chains(chains) if chains else None
        term_batch = self._gather_terms(terms) if terms else None
        parts = [
            *([(chain_batch.x_t, chain_batch.update.t)] if chain_batch else []),
            *([(term_batch.x_t, term_batch.t)] if term_batch else []),
        ]
        x_t, t = (torch.cat(column) for column in zip(*parts, strict=True))
        prediction = self.model.predict(x_t, t)
        cut = len(chains)
        values = None
        if term_batch is not None:
            values = self._evaluate(term_batch, prediction.rows(slice(cut, None)))
        if chain_batch is not None:
            self._advance(chain_batch, prediction.rows(slice(0, cut)))
        if term_batch is not None and values is not None:
            self._datum_slots.values[term_batch.slots, term_batch.units] = values

    def collect(self, ends: Sequence[Entry]) -> None:
        """Copy the results of finished rows off their slots."""
        chains = [entry for entry in ends if entry.key in self._chains]
        terms = [entry for entry in ends if entry.key in self._terms]
        if chains:
            x_0 = self._chain_slots.x[self._slots(chains)].cpu()
            for entry, sample in zip(chains, x_0, strict=True):
                self._chains[entry.key].samples[entry.row] = sample
        if terms:
            values = self._datum_slots.values[self._slots(terms)].cpu()
            for entry, row in zip(terms, values, strict=True):
                open_job = self._terms[entry.key]
                open_job.values[entry.row] = row[: open_job.job.units]

    def broken(self, chains: Sequence[Entry], ends: Sequence[Entry]) -> dict[int, str]:
        """Jobs with a row that left the finite numbers, and what happened to it.

        Args:
            chains: entries of chains, looked at on the device.
            ends: entries of finished rows, collected; of these the terms are looked at.
        """
        found: dict[int, str] = {}
        if chains:
            finite = self._chain_slots.finite[self._slots(chains)].tolist()
            for entry, good in zip(chains, finite, strict=True):
                if not good:
                    t = self._chains[entry.key].t[entry.unit]
                    found[entry.key] = f"sample {entry.row} became NaN or infinite by step t = {t}"
        for entry in ends:
            open_job = self._terms.get(entry.key)
            if open_job is not None:
                values = open_job.values[entry.row]
                # Minus infinity is an answer: the model holds the datum to be impossible.
                wrong = values.isnan() | values.isposinf()
                if bool(wrong.any()):
                    t = int(open_job.job.steps.t[entry.row][wrong][0])
                    found[entry.key] = f"the bound of datum {entry.row} has no finite term t = {t}"
        return found

    def result(
        self, key: int, queue_seconds: float, compute_seconds: float
    ) -> ChainResult | TermResult:
        """The answer of a job whose rows have all been collected."""
        chains = self._chains.get(key)
        if chains is not None:
            return ChainResult(
                samples=chains.samples,
                queue_seconds=queue_seconds,
                compute_seconds=compute_seconds,
                network_evaluations=chains.job.cost,
            )
        job, values = self._terms[key].job, self._terms[key].values
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

    def peek(self, key: int, rows: int, slots: Mapping[int, int], done: int) -> Peek | None:
        """The first `rows` rows of a job between ticks; None where it has no chains.

        Args:
            key: of the job.
            rows: which have all started.
            slots: by row, of those that have not ended.
            done: network evaluations the job has had.
        """
        chains = self._chains.get(key)
        if chains is None:
            return None
        finished = [row not in slots for row in range(rows)]
        with torch.inference_mode(False), torch.no_grad():
            index = [slots[row] for row, ended in enumerate(finished) if not ended]
            at = torch.tensor(index, dtype=torch.int64, device=self.model.device)
            estimates = self._chain_slots.previous[at]
            return Peek.of(done, finished, chains.samples[:rows].clone(), estimates)

    def _admit(self, chains: Sequence[Entry], terms: Sequence[Entry]) -> None:
        """Write the state of rows at their first unit, job by job: jobs bring their own data."""
        device = self.model.device
        for key, group in groupby(_starts(chains), lambda entry: entry.key):
            entries, job = list(group), self._chains[key].job
            slots, rows = self._columns([(entry.slot, entry.row) for entry in entries])
            host_rows = rows.to("cpu")
            seen = None
            if job.observation is not None:
                seen = to_device(rows_of(job.observation, host_rows), device)
            if job.start is not None:
                x = job.start[host_rows].to(device)
            else:
                step = torch.full_like(rows, self.model.T + 1)
                noise = CounterNoise(torch.full_like(rows, job.seed), rows, step)
                r = seen or self._chain_slots.nothing(len(rows))
                x = begin(self.model, noise, r, len(rows))
            self._chain_slots.write(slots, x, seen)
        for key, group in groupby(_starts(terms), lambda entry: entry.key):
            entries = list(group)
            rows = torch.tensor([entry.row for entry in entries])
            x_0 = self._terms[key].job.x_0[rows]
            self._datum_slots.x_0[self._slots(entries)] = x_0.to(device)

    def _gather_chains(self, entries: Sequence[Entry]) -> _ChainBatch:
        whole: list[tuple[int, ...]] = []
        linear: list[list[float]] = []
        for key, number, slot, unit in entries:
            chain = self._chains[key]
            job, step = chain.job, (chain.t[unit], chain.s[unit])
            whole.append((slot, job.seed, number, *step, int(job.plan.ancestral)))
            linear.append(chain.linear[unit])
        slots, seed, row, t, s, ancestral = self._columns(whole)
        coefficients = torch.tensor(linear, dtype=torch.float64).to(self.model.device)
        update = Update(t, s, coefficients, ancestral.bool())
        return _ChainBatch(slots, self._chain_slots.x[slots], update, CounterNoise(seed, row, t))

    def _gather_terms(self, entries: Sequence[Entry]) -> _TermBatch:
        whole: list[tuple[int, ...]] = []
        conventions: list[Convention] = []
        for key, number, slot, unit in entries:
            job = self._terms[key].job
            step = (int(job.steps.t[number, unit]), int(job.steps.draw[number, unit]))
            whole.append((slot, job.seed, number, *step, unit))
            conventions.append(job.convention)
        slots, seed, row, t, draw, units = self._columns(whole)
        x_0 = self._datum_slots.x_0[slots]
        x_t = self.model.process.marginal(x_0, t).sample(term_noise(seed, row, draw))
        return _TermBatch(slots, units, x_0, x_t, t, conventions)

    def _advance(self, batch: _ChainBatch, prediction: Prediction) -> None:
        state = self._chain_slots
        x_s = advance(
            prediction,
            batch.x_t,
            state.previous[batch.slots],
            batch.update,
            batch.noise,
            state.observation(batch.slots),
        )
        # Of bits a NaN probability draws a zero, so the estimate is looked at as well.
        finite = (x_s + prediction.x_0).flatten(1).isfinite().all(1)
        state.x[batch.slots] = x_s
        state.previous[batch.slots] = prediction.x_0
        state.finite[batch.slots] &= finite

    def _evaluate(self, batch: _TermBatch, prediction: Prediction) -> Tensor:
        values = torch.zeros(len(batch.t), device=self.model.device)
        for convention in set(batch.conventions):
            these = [i for i, other in enumerate(batch.conventions) if other == convention]
            index = torch.tensor(these, device=self.model.device)
            x_0, x_t, t = batch.x_0[index], batch.x_t[index], batch.t[index]
            found = evaluate(self.model, prediction.rows(index), x_0, x_t, t, convention)
            values[index] = found.to(values.dtype)
        return values

    def _slots(self, entries: Sequence[Entry]) -> Tensor:
        return torch.tensor([entry.slot for entry in entries], device=self.model.device)

    def _columns(self, whole: Sequence[tuple[int, ...]]) -> tuple[Tensor, ...]:
        """Rows of whole numbers as int64 columns on the device, in one copy."""
        table = torch.tensor(whole, dtype=torch.int64).to(self.model.device)
        return table.T.contiguous().unbind(0)


def _starts(entries: Sequence[Entry]) -> list[Entry]:
    """Entries of rows that are new, job by job."""
    return sorted(entry for entry in entries if entry.unit == 0)


def rehearse(runner: Runner, rows: int) -> None:
    """A tick of `rows` rows that nobody asked for, with chains and a term in it."""
    model = runner.model
    plan = Ancestral(steps=1).plan(model.process)
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
