"""/sample: draws from p(x_0), chains from x_T down."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor
from typing_extensions import override

from service.answers import SampleAnswer
from service.arrays import plain
from service.engine.jobs import ChainJob
from service.engine.limits import check_cost
from service.engine.results import ChainResult
from service.models import Catalogue, Served
from service.schemas import SampleRequest
from service.settings import Settings
from service.sheets import Strip
from service.work.base import Work, check_rows, make_plan, settle_seed, stated


@final
@dataclass(frozen=True)
class SampleWork(Work[ChainResult]):
    """Draws from p(x_0)."""

    served: Served
    job: ChainJob
    request: SampleRequest

    @classmethod
    def prepare(
        cls, request: SampleRequest, catalogue: Catalogue, settings: Settings
    ) -> "SampleWork":
        """The work, or the problem that forbids it."""
        rows, served = request.num_samples, catalogue.find(request.model)
        check_rows(rows, "num_samples", settings.max_samples, "NONEQ_MAX_SAMPLES")
        plan = make_plan(request.sampler, served)
        job = ChainJob(served.name, rows, settle_seed(request.seed), plan)
        check_cost(job.cost, settings)
        return cls(served, job, request)

    @property
    @override
    def arrays(self) -> dict[str, Any]:
        return {"samples": True}

    @override
    def answer(self, result: ChainResult) -> SampleAnswer:
        space = self.served.model.space
        return SampleAnswer(
            model=self.served.name,
            seed=self.job.seed,
            exact=result.exact,
            sampler=stated(self.request.sampler, self.served),
            shape=list(space.shape),
            samples=plain(space.to_data(result.samples), space),
            network_evaluations=result.network_evaluations,
        )

    @override
    def tensors(self, result: ChainResult) -> dict[str, Tensor]:
        return {"samples": self.served.model.space.to_data(result.samples)}

    @property
    @override
    def layout(self) -> tuple[int, int]:
        return 1, self.job.rows

    @override
    def strips(self, result: ChainResult) -> list[Strip]:
        return [Strip(self.served.model.space.to_data(result.samples))]
