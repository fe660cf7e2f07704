"""One tick of one model: a single network call on rows of any jobs, at any steps.

    prediction = network(chains' x_t and terms' x_t ~ q(x_t | x_0), joined)
    chains: x_s by `diffusion.sampling.advance`;    terms: nats by `diffusion.bound.evaluate`

No policy: which rows, in which slots, is the scheduler's choice. Until everything of a tick has
been computed nothing is written back, so one that failed can be tried again, whole or in parts.
"""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from diffusion.bound import closed_last, combine, evaluate, prior_part
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.prediction import Prediction
from diffusion.sampling import advance, begin, burst
from service.engine.batches import TermBatch, by_job, gather_chains, gather_terms
from service.engine.calls import Calls, Precision, Rows
from service.engine.jobs import ChainJob, ChainResult, Job, TermJob, TermResult
from service.engine.lanes import Entry
from service.engine.peek import Peek
from service.engine.slots import ChainSlots, DatumSlots, rows_of, to_device


@final
class Runner:
    """The device's side of one model.

    Args:
        model: the model, on its device.
        slots: most chains, and most data, held at once.
        precision: of the network's weights in sampling; bounds are of the model as it is.

    Attributes:
        batch: most rows of a tick.
        calls: how the network is called, filled up or not.
        exact: whether filling was tested to give a row the same bits in any company and place.
        chains: their state.
        data: theirs.
    """

    def __init__(self, model: DiffusionModel, slots: int, precision: Precision = "float32") -> None:
        self.model, self.calls = model, Calls(model, precision)
        self.batch, self.exact = 1, False
        self.chains = ChainSlots(model, slots)
        self.data = DatumSlots(model, slots)
        self._chain_jobs: dict[int, ChainJob] = {}
        self._term_jobs: dict[int, TermJob] = {}
        self._results: dict[int, Tensor] = {}  # samples, or values of terms, as they come

    def open(self, key: int, job: Job) -> None:
        """Get ready for entries of this job."""
        # The caller gets these tensors, so they must not be inference tensors.
        with torch.inference_mode(False):
            if isinstance(job, TermJob):
                self._term_jobs[key] = job
                self._results[key] = torch.zeros(job.rows, job.units, dtype=torch.float64)
                self.data.reserve(job.units)
            else:
                self._chain_jobs[key] = job
                self._results[key] = torch.zeros(job.rows, *self.model.event)

    def close(self, key: int) -> None:
        """Forget the job."""
        for held in (self._chain_jobs, self._term_jobs, self._results):
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
        device, state = self.model.device, self.chains
        n, m = len(chains), len(terms)
        of_chains: Rows | None = None
        of_terms: Rows | None = None
        if chains:
            rows = gather_chains(
                self._filled(chains), length, self._chain_jobs, device, share=not self.calls.fill
            )
            x_t, previous = state.x[rows.slots], state.previous[rows.slots]
            seen = state.observation(rows.slots) if rows.observed else None
            if length > 1:
                model = self.calls.sampling
                found = burst(model, x_t, previous, rows.update, rows.seed, rows.row, seen)
                state.advance(rows.slots, *found)
                return
            of_chains = x_t[:n], rows.update.t[:n]
        if terms:
            data = gather_terms(self._filled(terms), self._term_jobs, device)
            x_0 = self.data.x_0[data.slots]
            drawn = self.model.process.marginal(x_0, data.t).sample(data.noise)
            of_terms = drawn[:m], data.t[:m]
        chain, term = self.calls(of_chains, of_terms)
        if term is not None:
            values = self._evaluate(data, term, x_0, drawn)
        if chain is not None:
            x_s = advance(chain, x_t, previous, rows.update, rows.noise, seen)
            state.advance(rows.slots, x_s, chain.x_0)
        if term is not None:
            self.data.values[data.slots, data.units] = values

    def collect(self, ends: Sequence[Entry]) -> None:
        """Copy the results of finished rows off their slots."""
        for key, entries in by_job(sorted(ends)):
            rows, slots = [entry.row for entry in entries], self._slots(entries)
            if key in self._chain_jobs:
                self._results[key][rows] = self.chains.x[slots].cpu()
            else:
                units = self._term_jobs[key].units
                self._results[key][rows] = self.data.values[slots, :units].double().cpu()

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
            finite = self.chains.finite[self._slots(chains)].tolist()
            for entry, good in zip(chains, finite, strict=True):
                if not good:
                    t = int(self._chain_jobs[entry.key].plan.t[entry.unit + length - 1])
                    found[entry.key] = f"sample {entry.row} became NaN or infinite by step t = {t}"
        for entry in ends:
            job = self._term_jobs.get(entry.key)
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
        if key in self._chain_jobs:
            return ChainResult(
                samples=self._results[key],
                queue_seconds=queue_seconds,
                compute_seconds=compute_seconds,
                network_evaluations=self._chain_jobs[key].cost,
                exact=self.exact,
            )
        job, values = self._term_jobs[key], self._results[key]
        with torch.inference_mode(False), torch.no_grad():
            x_0 = job.x_0.to(self.model.device)
            prior = prior_part(self.model, x_0, job.convention).cpu()
            last = closed_last(self.model, x_0, job.convention, job.steps.end)
            found = combine(job.steps, values, prior, None if last is None else last.cpu())
        return TermResult(
            bound=found,
            steps=job.steps,
            values=values,
            queue_seconds=queue_seconds,
            compute_seconds=compute_seconds,
            network_evaluations=job.cost,
            exact=self.exact,
        )

    def peek(self, key: int, rows: int, slots: Mapping[int, int], done: int) -> Peek | None:
        """The first `rows` rows of a job between ticks; None where it has no chains.

        Args:
            key: of the job.
            rows: which have all started.
            slots: by row, of those that have not ended.
            done: network evaluations the job has had.
        """
        if key not in self._chain_jobs:
            return None
        finished = [row not in slots for row in range(rows)]
        with torch.inference_mode(False), torch.no_grad():
            index = [slots[row] for row, ended in enumerate(finished) if not ended]
            at = torch.tensor(index, dtype=torch.int64, device=self.model.device)
            estimates = self.chains.previous[at]
            return Peek.of(done, finished, self._results[key][:rows].clone(), estimates)

    def _admit(self, chains: Sequence[Entry], terms: Sequence[Entry]) -> None:
        """Write the state of rows at their first unit, job by job: jobs bring their own data."""
        device = self.model.device
        for key, entries in by_job([entry for entry in chains if entry.unit == 0]):
            job = self._chain_jobs[key]
            rows = torch.tensor([entry.row for entry in entries])
            seen = None
            if job.observation is not None:
                seen = to_device(rows_of(job.observation, rows), device)
            if job.start is not None:
                x = job.start[rows].to(device)
            else:
                noise = counter_noise(job.seed, rows.to(device), self.model.T + 1, Stream.CHAIN)
                x = begin(self.model, noise, seen, len(rows))
            self.chains.write(self._slots(entries), x, seen)
        for key, entries in by_job([entry for entry in terms if entry.unit == 0]):
            x_0 = self._term_jobs[key].x_0[[entry.row for entry in entries]]
            self.data.x_0[self._slots(entries)] = x_0.to(device)

    def _evaluate(
        self, batch: TermBatch, prediction: Prediction, x_0: Tensor, x_t: Tensor
    ) -> Tensor:
        values = torch.zeros(len(batch.t), device=self.model.device)
        for convention in set(batch.conventions):
            these = [i for i, other in enumerate(batch.conventions) if other == convention]
            i = slice(None) if len(these) == len(values) else torch.tensor(these, device=x_t.device)
            part = prediction.rows(i)
            t, s = batch.t[i], batch.s[i]
            found = evaluate(self.model, part, x_0[i], x_t[i], t, convention, s)
            values[i] = found.to(values.dtype)
        return values

    def _slots(self, entries: Sequence[Entry]) -> Tensor:
        return torch.tensor([entry.slot for entry in entries], device=self.model.device)

    def _filled(self, entries: list[Entry]) -> list[Entry]:
        """The entries, the last of them repeated up to `fill`."""
        return [*entries, *entries[-1:] * (self.calls.fill - len(entries))]
