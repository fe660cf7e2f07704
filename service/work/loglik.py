"""/loglik: the bound K on log p(x_0), from its terms."""

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.bound import check_convention, null_log_prob
from diffusion.space import Convention
from diffusion.strata import Steps, choose_steps
from diffusion.trajectory import Trajectories
from service.answers import Loglik, LoglikAnswer, Parts
from service.arrays import check_values, read_events, refusal
from service.columns import Columns
from service.encoding import BINARY, EVENTS, JSON
from service.engine.jobs import TermJob, TermResult
from service.engine.limits import check_cost
from service.models import Served
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
    def prepare(cls, request: LoglikRequest, served: Served, settings: Settings) -> "LoglikWork":
        """The work, or the problem that forbids it."""
        model, space = served.model, served.model.space
        count = len(request.data)
        check_rows(count, "data", settings.max_data, "NONEQ_MAX_DATA")
        each = model.T * request.trajectories if request.trajectories else model.T - 1
        check_cost(count * min(request.terms or each, each), settings)
        events = read_events(request.data, space, "data")
        if events.opaque is not None:
            raise InvalidRequest(
                "A PNG in data has transparent pixels, and a likelihood needs every pixel.",
                location="data",
                fix="Send opaque PNGs; /inpaint draws what was not seen.",
            )
        check_values(events.values, space, "data")
        convention = request.convention or space.default_convention
        seed = settle_seed(request.seed)
        try:
            check_convention(model, convention)
        except ValueError as error:
            raise refusal(error, "convention", convention) from None
        steps = _choose(request, model.T, torch.arange(count), seed, convention)
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
        dims = self.served.model.space.dims
        results = [
            Loglik(
                bound=_finite(bound),
                standard_error=_finite(columns["standard_error"][i]),
                bits=_finite(bound / per_bit),
                bits_per_dim=_finite(-bound / per_bit / dims),
                relative_to_prior=_finite(columns["relative_to_prior"][i]),
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
            results=results,
            network_evaluations=result.network_evaluations,
        )

    @override
    def tensors(self, result: TermResult) -> dict[str, Tensor]:
        found = self._bounds(result)
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

    def _steps(self) -> Steps:
        """The terms of each datum as a table."""
        steps = self.job.steps
        return steps.steps(len(self.job.x_0)) if isinstance(steps, Trajectories) else steps

    def _terms(self, result: TermResult, datum: int) -> Columns:
        steps, values = self._steps(), result.values.view(len(self.job.x_0), -1)
        columns = {"t": steps.t[datum], "weight": steps.weight, "value": values[datum]}
        return Columns({name: x.numpy() for name, x in columns.items()})


def _choose(
    request: LoglikRequest, T: int, rows: Tensor, seed: int, convention: Convention
) -> Steps | Trajectories:
    """Which terms are asked for, or the problem with that."""
    if request.trajectories is None:
        try:
            return choose_steps(T, rows, seed, convention, request.terms)
        except ValueError as error:
            raise refusal(error, "terms", request.terms) from None
    if request.terms is not None:
        raise InvalidRequest(
            "A trajectory's weight needs every step, so `terms` cannot go with `trajectories`.",
            location="terms",
            received=request.terms,
            fix="Leave out `terms`, or `trajectories`.",
        )
    try:
        return Trajectories(request.trajectories, T)
    except ValueError as error:
        raise refusal(error, "trajectories", request.trajectories) from None


def _finite(value: float) -> float | None:
    """JSON has no infinity: the bound of a datum that the model excludes is null."""
    return value if math.isfinite(value) else None
