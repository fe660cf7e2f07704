"""Handles /sample: draws from p(x_0), by chains from x_T down to x_0."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from service.catalogue import Served
from service.codecs.contact_sheet import Strip
from service.codecs.json import plain
from service.codecs.rows import Table, lines_of, names_of
from service.engine.admission import check_cost
from service.engine.jobs import SampleJob
from service.engine.results import Frames, FrameStates, SampleResult
from service.handlers.base import Work, check_rows, make_plan, seed_or_new, with_steps
from service.schemas.requests import SampleRequest
from service.schemas.responses import SampleAnswer, TableColumn, Trajectory
from service.state import Backend

_FRAME_BYTES = 12  # bytes per number of a frame as JSON


@final
@dataclass(frozen=True)
class SampleWork(Work[SampleResult]):
    """Draws from p(x_0)."""

    served: Served
    job: SampleJob
    request: SampleRequest

    @classmethod
    def prepare(cls, request: SampleRequest, backend: Backend) -> "SampleWork":
        """Check a request and prepare its work; raise a Problem if it is not possible."""
        rows, served, settings = request.num_samples, backend.find(request.model), backend.settings
        check_rows(rows, "num_samples", settings.max_samples, "NONEQ_MAX_SAMPLES")
        plan = make_plan(request.sampler, served)
        frames, text = None, 0
        if request.frames:
            frames = Frames.spread(request.frames, len(plan))
            numbers = 2 * len(frames.positions) * rows * served.model.space.dims
            text = numbers * _FRAME_BYTES
        seed = seed_or_new(request.seed)
        job = SampleJob(
            served.name,
            rows,
            seed,
            plan,
            frames=frames,
            answer_bytes=text,
            version=served.version,
        )
        check_cost(job.cost, settings)
        return cls(served, job, request)

    @property
    @override
    def arrays(self) -> dict[str, Any]:
        return {"samples": True, "trajectory": True}

    @override
    def answer(self, result: SampleResult) -> SampleAnswer:
        space = self.served.model.space
        return SampleAnswer(
            model=self.served.name,
            seed=self.job.seed,
            exact=result.stats.batch_invariant,
            sampler=with_steps(self.request.sampler, self.served),
            shape=list(space.shape),
            columns=space.names,
            table=TableColumn.all_of(space),
            samples=plain(space.to_data(result.samples), space),
            trajectory=self._trajectory(result.frame_states),
            network_evaluations=result.stats.network_evaluations,
            checksum=self.served.checksum,
        )

    @override
    def tensors(self, result: SampleResult) -> dict[str, Tensor]:
        found = {"samples": self.served.model.space.to_data(result.samples)}
        if result.frame_states is not None:
            t, x, x_0 = self._states(result.frame_states)
            found |= {"trajectory_t": t, "trajectory_x": x, "trajectory_x_0": x_0}
        return found

    @override
    def lines(self, result: SampleResult) -> Table:
        space = self.served.model.space
        return names_of(space), lines_of(space.to_data(result.samples), space)

    @property
    @override
    def layout(self) -> tuple[int, int]:
        frames = self.job.frames
        return (1, self.job.rows) if frames is None else (self.job.rows, len(frames.positions))

    @override
    def strips(self, result: SampleResult) -> list[Strip]:
        space = self.served.model.space
        if result.frame_states is None:
            return [Strip(space.to_data(result.samples))]
        return [Strip(space.to_data(x), sequence=True) for x in result.frame_states.x.unbind(1)]

    def _states(self, kept: FrameStates) -> tuple[Tensor, Tensor, Tensor]:
        """Return t, x and x_0 of the frames, in data units."""
        space, plan = self.served.model.space, self.job.plan
        t = torch.cat((plan.t, plan.t.new_zeros(1)))[list(kept.frames.positions)]
        x, x_0 = (
            space.to_data_units(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            for z in (kept.x, kept.x_0)
        )
        return t, x, x_0

    def _trajectory(self, kept: FrameStates | None) -> Trajectory | None:
        if kept is None:
            return None
        space = self.served.model.space
        t, x, x_0 = self._states(kept)
        return Trajectory(t=t.tolist(), x=plain(x, space), x_0=plain(x_0, space))
