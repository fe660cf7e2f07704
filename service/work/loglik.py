"""/loglik: the bound K on log p(x_0), from its terms."""

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.bound import check_convention, null_log_prob
from diffusion.checkpoint import Evaluation
from diffusion.choice import Choice
from diffusion.space import Convention
from diffusion.strata import Steps
from diffusion.trajectory import Trajectories
from service.answers import Loglik, LoglikAnswer, Parts
from service.arrays import check_values, read_events, refusal
from service.columns import Columns
from service.encoding import BINARY, EVENTS, JSON
from service.engine.jobs import TermJob
from service.engine.limits import check_cost
from service.engine.results import TermResult
from service.models import Catalogue, Served
from service.problems import InvalidRequest
from service.schemas import LoglikRequest
from service.settings import Settings
from service.work.base import Work, check_rows, settle_seed

TERM_BYTES = 80  # of a term as JSON, most often less


@final
@dataclass(frozen=True)
class LoglikWork(Work[TermResult]):
    """Bounds on log p(x_0)."""

    served: Served
    job: TermJob
    request: LoglikRequest
    offers = (JSON, BINARY, EVENTS)

    @classmethod
    def prepare(
        cls, request: LoglikRequest, catalogue: Catalogue, settings: Settings
    ) -> "LoglikWork":
        """The work, or the problem that forbids it."""
        served = catalogue.find(request.model)
        space, count = served.model.space, len(request.data)
        check_rows(count, "data", settings.max_data, "NONEQ_MAX_DATA")
        convention = request.convention or space.default_convention
        seed = settle_seed(request.seed)
        # Of one datum first: what they all cost is known before much is made of it.
        one = _settle(request, served, 1, seed, convention)
        check_cost(count * (request.trajectories or 1) * one.count, settings)
        events = read_events(request.data, space, "data")
        if events.opaque is not None:
            raise InvalidRequest(
                "A PNG in data has transparent pixels, and a likelihood needs every pixel.",
                location="data",
                fix="Send opaque PNGs; /inpaint draws what was not seen.",
            )
        check_values(events.values, space, "data")
        steps = _settle(request, served, count, seed, convention)
        x_0 = space.to_model(events.values)
        job = TermJob(served.name, x_0, seed, steps, convention)
        check_cost(job.cost, settings)
        if request.per_step:
            job = replace(job, answer_bytes=job.cost * TERM_BYTES)
        return cls(served, job, request)

    @property
    @override
    def arrays(self) -> dict[str, Any]:
        return {"results": True}

    @override
    def answer(self, result: TermResult) -> LoglikAnswer:
        columns = {name: x.tolist() for name, x in self._bounds(result).items()}
        per_bit = math.log(2)
        dims, measured = self.served.model.space.dims, self._measured()
        results = [
            Loglik(
                bound=_finite(bound),
                standard_error=_finite(columns["standard_error"][i]),
                bits=_finite(bound / per_bit),
                bits_per_dim=_finite(-bound / per_bit / dims),
                relative_to_prior=_finite(columns["relative_to_prior"][i]),
                rarer_than=None if measured is None else measured.rarer_than(bound),
                parts=Parts(
                    prior=_finite(columns["prior"][i]),
                    steps=_finite(columns["steps"][i]),
                    last=_finite(columns["last"][i]),
                    gain=_finite(columns["gain"][i]),
                ),
                per_step=self._terms(result, i) if self.request.per_step else None,
            )
            for i, bound in enumerate(columns["bound"])
        ]
        return LoglikAnswer(
            model=self.served.name,
            seed=self.job.seed,
            exact=result.exact,
            estimator=self.request.estimator,
            convention=self.job.convention,
            terms=self.job.units * self.job.each,
            trajectories=self.request.trajectories,
            steps=self.request.steps or self.served.model.T,
            results=results,
            network_evaluations=result.network_evaluations,
        )

    @override
    def tensors(self, result: TermResult) -> dict[str, Tensor]:
        found = self._bounds(result)
        measured = self._measured()
        if measured is not None:
            rarer = [measured.rarer_than(bound) for bound in found["bound"].tolist()]
            found["rarer_than"] = torch.tensor(rarer, dtype=torch.float64)
        if self.request.per_step:
            steps, values = self._steps(), result.values.view(len(self.job.x_0), -1)
            found |= {"term_t": steps.t, "term_weight": steps.weight, "term_value": values}
        return found

    def _bounds(self, result: TermResult) -> dict[str, Tensor]:
        """What there is one of for each datum."""
        model, bound = self.served.model, result.bound
        null = null_log_prob(model, self.job.x_0.to(model.device), self.job.convention).cpu()
        return {
            "bound": bound.bound,
            "standard_error": bound.standard_error,
            "relative_to_prior": bound.bound - null,
            "prior": bound.prior,
            "steps": bound.steps,
            "last": bound.last,
            "gain": bound.gain,
        }

    def _measured(self) -> Evaluation | None:
        """What is known of the same bound of held-out data: convention and chain are the same."""
        asked, T = self.request, self.served.model.T
        steps = None if asked.steps == T else asked.steps
        chain = steps, asked.spacing if steps else None, asked.trajectories
        for measured in self.served.metadata.evaluation:
            its_chain = measured.steps, measured.spacing, measured.trajectories
            same = its_chain == chain and measured.convention == self.job.convention
            if same and measured.split == "test" and measured.quantiles is not None:
                return measured
        return None

    def _steps(self) -> Steps:
        """The terms of each datum as a table."""
        steps = self.job.steps
        return steps.steps(len(self.job.x_0)) if isinstance(steps, Trajectories) else steps

    def _terms(self, result: TermResult, datum: int) -> Columns:
        steps, values = self._steps(), result.values.view(len(self.job.x_0), -1)
        columns = {"t": steps.t[datum], "weight": steps.weight, "value": values[datum]}
        return Columns({name: x.numpy() for name, x in columns.items()})


def _settle(
    request: LoglikRequest, served: Served, count: int, seed: int, convention: Convention
) -> Steps | Trajectories:
    """The terms of the first `count` data, or the problem that forbids them."""
    model = served.model
    try:
        check_convention(model, convention)
    except ValueError as error:
        raise refusal(error, "convention", convention) from None
    asked = request.model_dump(include=set(Choice.model_fields))
    said = [name for name in ("steps", "target_error", "terms") if asked[name] is not None]
    if request.trajectories is not None:
        return _whole(request, model.T, [*said, *(["strata"] * (request.strata != "even"))])
    try:
        return Choice(**asked).settle(model, torch.arange(count), seed, convention)
    except ValueError as error:
        location = said[0] if said else "strata"
        raise refusal(error, location, asked[location]) from None


def _whole(request: LoglikRequest, T: int, said: list[str]) -> Trajectories:
    """Whole trajectories, with which no other choice of terms can go."""
    assert request.trajectories is not None  # they are what is asked for
    if said:
        raise InvalidRequest(
            f"A trajectory's weight needs every step, so `{said[0]}` cannot go with "
            "`trajectories`.",
            location=said[0],
            received=getattr(request, said[0]),
            fix=f"Leave out `{said[0]}`, or `trajectories`.",
        )
    try:
        return Trajectories(request.trajectories, T)
    except ValueError as error:
        raise refusal(error, "trajectories", request.trajectories) from None


def _finite(value: float) -> float | None:
    """JSON has no infinity: the bound of a datum that the model excludes is null."""
    return value if math.isfinite(value) else None
