"""/posterior, /inpaint and /denoise: draws from p(x_0) r(x_0), r what was observed.

Of /posterior r may have other factors (`service.handlers.factors`).

A method of `diffusion.posterior.methods` says which method answers and what moves its systems of
particles, so a served answer is that of `sample_posterior`. Plain chains are enough where rows are
independent; systems are needed where particles are weighted, jump, or are seen through an operator.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.observation import in_model_units
from diffusion.posterior import MatchedStart, PosteriorMethod
from diffusion.posterior.diagnostics import Diagnostics as Told
from diffusion.posterior.diagnostics import Summary
from diffusion.samplers import Ancestral
from service.catalogue import Catalogue, Served
from service.codecs.arrays import plain, refusal
from service.codecs.contact_sheet import Strip
from service.engine.admission import check_cost
from service.engine.jobs import SampleJob, SMCJob
from service.engine.results import PosteriorResult, SampleResult
from service.errors import InvalidRequest, TooExpensive
from service.handlers.base import Work, check_rows, make_plan, settle_seed, stated
from service.handlers.factors import Beside, find_beside
from service.handlers.observation import Seen, read_seen
from service.schemas.conditions import Conditions
from service.schemas.responses import Diagnostics, Posterior, PosteriorAnswer
from service.settings import Settings

_MOST_AXES = 2**26  # numbers of the covariances of what was seen with each particle


@final
@dataclass(frozen=True)
class PosteriorWork(Work[SampleResult | PosteriorResult]):
    """Draws from p(x_0) r(x_0); sample i n + j of the job is sample j of example i."""

    served: Served
    job: SampleJob | SMCJob
    request: Conditions
    seen: Seen
    beside: Beside
    method: PosteriorMethod
    sampler: Ancestral
    start: MatchedStart | None
    gained: Tensor

    @classmethod
    def prepare(
        cls, request: Conditions, catalogue: Catalogue, settings: Settings
    ) -> "PosteriorWork":
        """The work, or the problem that forbids it."""
        served = catalogue.find(request.model)
        count, each, model = request.count, request.num_samples, served.model
        check_rows(
            count,
            "label" if request.observed is None else "observed",
            settings.max_data,
            "NONEQ_MAX_DATA",
        )
        check_rows(count * each, "num_samples", settings.max_samples, "NONEQ_MAX_SAMPLES")
        seen = read_seen(request, model.space)
        beside = find_beside(request.beside, count, served, catalogue)
        try:
            parts = seen.operator, seen.values, seen.known, seen.noise
            observation, gained = in_model_units(model.space, *parts)
        except ValueError as error:
            raise refusal(error, "operator") from None
        try:
            method = request.method.resolve(model, observation, beside.factors)
            start = method.start(model, observation)
        except ValueError as error:
            raise refusal(error, "method") from None
        sampler = _sampler(request.sampler, method, model.T)
        plan = make_plan(sampler, served, None if start is None else start.t)
        try:
            kernel = method.kernel(model, observation, each, sampler)
        except ValueError as error:
            raise refusal(error, "method") from None
        seed = settle_seed(request.seed)
        if kernel is not None:
            systems = each // kernel.draws
            most = settings.max_particles
            check_rows(kernel.particles, "particles", most, "NONEQ_MAX_PARTICLES")
            check_cost(count * systems * kernel.particles * len(kernel), settings)
            _check_axes(kernel.particles, method.covariance_size(observation), model.space.dims)
            job: SampleJob | SMCJob = SMCJob.of(
                served.name, model, seed, kernel, observation, systems, beside.factors
            )
        else:
            check_cost(count * each * len(plan), settings)
            example = torch.arange(count).repeat_interleave(each)
            job = SampleJob(
                served.name,
                count * each,
                seed,
                plan,
                start=None if start is None else start.x_t[example],
                observation=None if start is not None else observation.rows(example),
            )
        check_cost(job.cost, settings)
        gained = gained + beside.gained
        return cls(served, job, request, seen, beside, method, sampler, start, gained)

    @property
    @override
    def arrays(self) -> dict[str, Any]:
        fields = {"samples", "mean", "std", "quantiles"}
        return {"results": {"__all__": fields}}

    @override
    def render(self, result: SampleResult | PosteriorResult, form: str) -> bytes:
        self._check_possible(self._diagnostics(result))
        return super().render(result, form)

    @override
    def answer(self, result: SampleResult | PosteriorResult) -> PosteriorAnswer:
        space, found = self.served.model.space, self.tensors(result)
        _, weights = self._drawn(result)
        std, quantiles = found.get("std"), found.get("quantiles")
        x_0 = space.to_model(found["samples"].flatten(0, 1)).reshape(found["samples"].shape)
        read, labels = self.beside.read(x_0, weights), self.beside.labels
        results = [
            Posterior(
                samples=plain(samples, space),
                weights=weights[i].tolist(),
                mean=found["mean"][i].numpy(),
                std=None if std is None else std[i].numpy(),
                quantiles=None if quantiles is None else quantiles[i].numpy(),
                label=None if labels is None else labels[i],
                labels=None if read is None else read[i],
                diagnostics=self._told(told, i),
            )
            for i, (samples, told) in enumerate(
                zip(found["samples"], self._diagnostics(result), strict=True)
            )
        ]
        return PosteriorAnswer(
            model=self.served.name,
            seed=self.job.seed,
            exact=result.batch_invariant,
            method=self.method.name,
            biased=self.method.biased,
            sampler=stated(self.sampler, self.served),
            shape=list(space.shape),
            columns=space.columns,
            results=results,
            network_evaluations=result.network_evaluations,
            deprecation=list(self.request.deprecation) or None,
        )

    @override
    def tensors(self, result: SampleResult | PosteriorResult) -> dict[str, Tensor]:
        samples, weights = self._drawn(result)
        told = Summary.of(samples, weights, self.request.quantiles or ())
        found = {"samples": samples, "mean": told.mean}
        if self.request.num_samples > 1:
            found["std"] = told.std
        if self.request.quantiles is not None:
            found["quantiles"] = told.quantiles
        return found

    @property
    @override
    def layout(self) -> tuple[int, int]:
        return len(self.seen.values), self.request.num_samples

    @override
    def strips(self, result: SampleResult | PosteriorResult) -> list[Strip]:
        (samples, _), shown = self._drawn(result), self.seen.picture
        if shown is None:
            return [Strip(each) for each in samples]
        return [Strip(*each) for each in zip(samples, *shown, strict=True)]

    def _drawn(self, result: SampleResult | PosteriorResult) -> tuple[Tensor, Tensor]:
        """The samples, [N, n, *event], data units; and what each counts, float64 [N, n]."""
        x, weights = result.samples, torch.full(self.layout, 1 / self.layout[1]).double()
        if isinstance(result, PosteriorResult):
            count, seed = len(self.seen.values), self.job.seed
            picked, weights = self.method.gather(result.result, count, seed)
            x = picked.flatten(0, 1)
        shape = *self.layout, *self.served.model.space.shape
        return self.estimates(x).reshape(shape), weights

    @override
    def estimates(self, x_0: Tensor) -> Tensor:
        """What was seen exactly is put back bit for bit."""
        x, exact = super().estimates(x_0), self.seen.exact
        if not bool(exact.any()):
            return x
        example = torch.arange(len(x)) // self.request.num_samples
        return torch.where(exact[example], self.seen.values[example], x)

    def _diagnostics(self, result: SampleResult | PosteriorResult) -> tuple[Told, ...]:
        """What the systems of each example say of themselves, in model units."""
        count = len(self.seen.values)
        if isinstance(result, SampleResult):
            return (Told(),) * count
        return self.method.diagnose(result.result, count, self.served.model.T)

    def _told(self, told: Told, example: int) -> Diagnostics:
        """The same in data units, as it is answered."""
        space, start = self.served.model.space, self.start
        gained, suspect = float(self.gained[example]), self.seen.warnings(space)[example]
        said = told.warning, suspect, None if start is None else start.warning
        warning = "; ".join(part for part in said if part) or None
        scale = space.affine[1].flatten()
        noise = None  # elements of several scales have no one deviation
        if start is not None and bool((scale == scale[0]).all()):
            noise = start.noise * float(scale[0])
        evidence = told.log_evidence
        return Diagnostics(
            particles=told.particles,
            systems=told.systems,
            ess=min(told.ess, default=float(told.particles)),
            ess_by_step=list(told.ess),
            ancestors=told.ancestors,
            log_evidence=None if evidence is None else evidence + gained,
            log_evidence_error=told.log_evidence_error,
            warning=warning,
            start=None if start is None else start.t,
            start_noise=noise,
        )

    @property
    def _said(self) -> str:
        """The field that says most of what was asked."""
        if not self.seen.nothing:
            return "observed"
        return "expert" if self.beside.labels is None else "label"

    def _check_possible(self, told: tuple[Told, ...]) -> None:
        """Raise InvalidRequest where the model has not seen the like of what was observed."""
        for example, each in enumerate(told):
            if each.log_evidence == float("-inf"):
                raise InvalidRequest(
                    f"The model gives what was asked of example {example} no probability.",
                    location=self._said,
                    index=example,
                    expected="values that the model holds to be possible",
                    fix="Check the units and which elements are known, or allow for noise "
                    "(noise_std, or flip_probability).",
                )


def _check_axes(particles: int, seen: int, dims: int) -> None:
    """Raise TooExpensive where the covariances of one system's particles take too much memory."""
    if particles * seen * dims > _MOST_AXES:
        raise TooExpensive(
            "The covariances of a system's particles take more memory than one request may.",
            location="method",
            received=f"{particles} particles by {seen} numbers seen by {dims} elements",
            expected=f"at most {_MOST_AXES}",
            fix="Ask for fewer particles or products, or the diagonal covariance.",
        )


def _sampler(asked: Ancestral, method: PosteriorMethod, T: int) -> Ancestral:
    """As asked, or as many steps as the method has where nothing is said of them."""
    if asked.steps is None and method.default_steps is not None:
        return Ancestral(steps=min(T, method.default_steps))
    return asked
