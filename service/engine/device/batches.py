"""Batches: what the rows of a tick need beside their state, as columns on the device.

Rows of one job share its plan, its seed and its convention, so the columns are looked up job by job
and joined; entries come sorted by job. Which rows, in which slots, is the scheduler's choice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from diffusion.likelihood.iwae import Trajectories
from diffusion.noise import CounterNoise, Stream
from diffusion.samplers import Update
from diffusion.space import Convention
from service.engine.jobs import ChainJob, TermJob
from service.engine.scheduling.batch import Entry
from service.engine.transfer import upload


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
        groups: all of them, by kind.
    """

    slots: Tensor
    units: Tensor
    t: Tensor
    groups: "list[TermGroup]"

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """What each group's rows have, in the batch's order, float32 [B, ...]."""
        if len(parts) == 1:
            return parts[0].float()
        whole = parts[0].new_empty(len(self.t), *parts[0].shape[1:], dtype=torch.float32)
        for group, part in zip(self.groups, parts, strict=True):
            whole[group.index] = part.float()
        return whole


@dataclass(frozen=True)
class TermGroup:
    """Terms of one kind, which are worked out together.

    Attributes:
        index: which of the batch's rows.
        t: int64 [G].
        s: int64 [G], where the steps end.
        noise: of the forward draw, or of the trajectory.
        convention: of the bound.
    """

    index: Tensor | slice
    t: Tensor
    s: Tensor
    noise: CounterNoise
    convention: Convention

    @property
    def of_trajectories(self) -> bool:
        """Whether they are steps of trajectories."""
        return self.noise.stream == Stream.TRAJECTORY


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
    slots, seed, row = upload(torch.tensor(rows), device).unbind(1)
    columns = upload(torch.cat(parts, 1), device)
    t, s = columns[..., :2].long().unbind(-1)
    alike = len(set(own)) == 1
    update = Update(t, s, columns[..., 2:], own[0] if alike else upload(torch.tensor(own), device))
    observed = any(jobs[key].observation is not None for key, _ in groups)
    return ChainBatch(slots, seed, row, update if length > 1 else update.step(0), observed)


def gather_terms(
    entries: Sequence[Entry], jobs: Mapping[int, TermJob], device: torch.device, fill: int = 0
) -> TermBatch:
    """The batch of some terms.

    With `fill`, each kind's rows are filled up to so many, and last steps, which are evaluated in
    another way, are a kind of their own: elementwise kernels then never see another size either.
    """
    rows: list[Tensor] = []
    kinds: list[tuple[Convention, Stream, bool]] = []
    for key, group in by_job(entries):
        job = jobs[key]
        row, slot, unit = torch.tensor([entry[1:] for entry in group]).unbind(1)
        datum, seed = row // job.each, torch.full_like(row, job.seed)
        t, s, draw = job.steps.at(row, unit)
        rows.append(torch.stack((slot, unit, seed, datum, t, s, draw), 1))
        stream = Stream.TRAJECTORY if isinstance(job.steps, Trajectories) else Stream.TERM
        kinds += [(job.convention, stream, fill > 0 and end == 0) for end in s.tolist()]
    slots, units, *columns = upload(torch.cat(rows), device).unbind(1)
    groups: list[TermGroup] = []
    for kind in dict.fromkeys(kinds):
        convention, stream, _ = kind
        these = [i for i, other in enumerate(kinds) if other == kind]
        alone = len(these) == len(kinds)
        these += these[-1:] * (fill - len(these))
        i = slice(None) if alone else upload(torch.tensor(these), device)
        seed, datum, t, s, draw = (column[i] for column in columns)
        groups.append(TermGroup(i, t, s, CounterNoise(seed, datum, draw, stream), convention))
    return TermBatch(slots, units, columns[2], groups)
