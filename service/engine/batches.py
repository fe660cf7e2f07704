"""Batches: what the rows of a tick need beside their state, as columns on the device.

Rows of one job share its plan, its seed and its convention, so the columns are looked up job by job
and joined; entries come sorted by job. Which rows, in which slots, is the scheduler's choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from diffusion.noise import CounterNoise
from diffusion.plan import Update
from diffusion.space import Convention
from diffusion.strata import term_noise
from service.engine.jobs import ChainJob, TermJob
from service.engine.lanes import Entry


@dataclass(frozen=True)
class ChainBatch:
    """Rows of chains.

    Attributes:
        slots: int64 [B], where their state is.
        seed: int64 [B].
        row: int64 [B], which chain of its job.
        update: their steps: one [B], or k in turn [k, B].
        observed: whether something was seen of one of them.
    """

    slots: Tensor
    seed: Tensor
    row: Tensor
    update: Update
    observed: bool

    @property
    def noise(self) -> CounterNoise:
        """Of one step."""
        return CounterNoise(self.seed, self.row, self.update.t)


@dataclass(frozen=True)
class TermBatch:
    """Terms of bounds.

    Attributes:
        slots: int64 [B], where the data are.
        units: int64 [B], which of its job's terms.
        t: int64 [B].
        s: int64 [B].
        noise: of the forward draw.
        conventions: one each.
    """

    slots: Tensor
    units: Tensor
    t: Tensor
    s: Tensor
    noise: CounterNoise
    conventions: list[Convention]


def by_job(entries: Sequence[Entry]) -> list[tuple[int, list[Entry]]]:
    """Each job's key and entries, of entries sorted by job."""
    return [(key, list(group)) for key, group in groupby(entries, lambda entry: entry.key)]


def gather_chains(
    entries: Sequence[Entry],
    length: int,
    jobs: Mapping[int, ChainJob],
    device: torch.device,
    share: bool = True,
) -> ChainBatch:
    """The batch of some chains' next `length` steps.

    With `share`, rows in step share their coefficients and their times: B = 1 in the update.
    """
    groups = by_job(entries)
    rows: list[tuple[int, int, int]] = []
    parts: list[Tensor] = []
    own: list[bool] = []
    steps = torch.arange(length)[:, None]
    for key, group in groups:
        job, units = jobs[key], [entry.unit for entry in group]
        rows += [(entry.slot, job.seed, entry.row) for entry in group]
        own += [job.plan.own] * len(group)
        alone = share and len(groups) == 1 and length > 1 and len(set(units)) == 1
        parts.append(job.plan.joined[steps + torch.tensor(units[:1] if alone else units)])
    slots, seed, row = torch.tensor(rows).to(device).unbind(1)
    columns = torch.cat(parts, 1).to(device)
    t, s = columns[..., :2].long().unbind(-1)
    alike = len(set(own)) == 1
    update = Update(t, s, columns[..., 2:], own[0] if alike else torch.tensor(own, device=device))
    observed = any(jobs[key].observation is not None for key, _ in groups)
    return ChainBatch(slots, seed, row, update if length > 1 else update.step(0), observed)


def gather_terms(
    entries: Sequence[Entry], jobs: Mapping[int, TermJob], device: torch.device
) -> TermBatch:
    """The batch of some terms."""
    rows: list[Tensor] = []
    conventions: list[Convention] = []
    for key, group in by_job(entries):
        job = jobs[key]
        row, slot, unit = torch.tensor([entry[1:] for entry in group]).unbind(1)
        steps = [of[row, unit] for of in (job.steps.t, job.steps.s, job.steps.draw)]
        rows.append(torch.stack((slot, torch.full_like(row, job.seed), row, *steps, unit), 1))
        conventions += [job.convention] * len(group)
    slots, seed, row, t, s, draw, units = torch.cat(rows).to(device).unbind(1)
    return TermBatch(slots, units, t, s, term_noise(seed, row, draw), conventions)
