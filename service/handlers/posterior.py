"""Handles /posterior, /inpaint and /denoise: draws from p(x_0) r(x_0), with r a likelihood.

The method (`diffusion.posterior.methods`) decides what the engine runs: systems of particles if it
has an SMC kernel, else plain chains. `diffusion.posterior.sample_posterior` gives the same answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.posterior import MatchedStart, PosteriorMethod
from diffusion.posterior.diagnostics import Diagnostics as PosteriorDiagnostics
from diffusion.posterior.diagnostics import Summary
from diffusion.samplers import Ancestral
from service.catalogue import Served
from service.codecs.contact_sheet import Strip
from service.codecs.json import plain
from service.codecs.rows import Table, lines_of, names_of, numeric, probabilities, summaries
from service.engine.admission import check_cost
from service.engine.jobs import SampleJob, SMCJob
from service.engine.results import PosteriorResult, SampleResult
from service.errors import InvalidRequest, TooExpensive, refusal
from service.handlers.base import Work, check_rows, make_plan, seed_or_new, with_steps
from service.handlers.factors import OtherFactors, read_factors
from service.handlers.observation import Observed, read_observed
from service.schemas.conditions import ConditionalRequest, PosteriorRequest
from service.schemas.responses import Diagnostics, Posterior, PosteriorAnswer, TableColumn
from service.state import Backend

_TRIES = 16  # draws for each sample of rows with limits
_MOST_AXES = 2**26  # numbers in the covariances of a system's particles with the observation


@final
@dataclass(frozen=True)
class PosteriorWork(Work[SampleResult | PosteriorResult]):
    """Draws from p(x_0) r(x_0); sample i n + j of the job is sample j of example i.

    With limits a sample is one of `tries` draws, of which those within the limits are taken.
    """

    served: Served
    job: SampleJob | SMCJob
    request: ConditionalRequest
    observed: Observed
    others: OtherFactors
    method: PosteriorMethod
    sampler: Ancestral
    start: MatchedStart | None
    gained: Tensor
    chains: tuple[PosteriorDiagnostics, ...]
    tries: int = 1

    @classmethod
    def prepare(cls, request: ConditionalRequest, backend: Backend) -> "PosteriorWork":
        """Check a request and prepare its work; raise a Problem if it is not possible."""
        served, settings = backend.find(request.model), backend.settings
        count, each, model = request.count, request.num_samples, served.model
        check_rows(
            count,
            "label" if request.observed is None else "observed",
            settings.max_data,
            "NONEQ_MAX_DATA",
        )
        check_rows(count * each, "num_samples", settings.max_samples, "NONEQ_MAX_SAMPLES")
        seen, others = read_observed(request, model.space), OtherFactors()
        tries = 1 if seen.limits is None else _TRIES
        if isinstance(request, PosteriorRequest):
            others = read_factors(request, served, backend.catalogue)
        with _refused("operator"):
            observation, gained = model.process.observe(
                model.space, seen.operator, seen.values, seen.known, seen.noise
            )
        with _refused("method"):
            method = request.method.resolve(model, observation, others.factors)
            start = method.start(model, observation)
        sampler = _sampler(request.sampler, method, model.T)
        plan = make_plan(sampler, served, None if start is None else start.t)
        with _refused("method"):
            kernel = method.kernel(model, observation, each, sampler)
        seed = seed_or_new(request.seed)
        if kernel is not None and tries > 1:
            raise InvalidRequest(
                "Particles do not take limits, which plain chains meet by leaving draws out.",
                location="method",
                received=method.name,
                expected="learned",
                fix="Use method 'learned', or leave out what is limited.",
            )
        if kernel is not None:
            systems = each // kernel.draws
            most = settings.max_particles
            check_rows(kernel.particles, "particles", most, "NONEQ_MAX_PARTICLES")
            check_cost(count * systems * kernel.particles * len(kernel), settings)
            _check_axes(kernel.particles, method.covariance_size(observation), model.space.dims)
            job: SampleJob | SMCJob = SMCJob.of(
                served.name,
                model,
                seed,
                kernel,
                observation,
                systems,
                others.factors,
                served.version,
            )
        else:
            check_cost(count * each * tries * len(plan), settings)
            example = torch.arange(count).repeat_interleave(each * tries)
            job = SampleJob(
                served.name,
                count * each * tries,
                seed,
                plan,
                start=None if start is None else start.x_t[example],
                observation=None if start is not None else method.told(observation).rows(example),
                version=served.version,
            )
        check_cost(job.cost, settings)
        gained = gained + others.gained
        chains = method.diagnose_chains(model, observation, len(plan))
        return cls(
            served, job, request, seen, others, method, sampler, start, gained, chains, tries
        )

    @property
    @override
    def arrays(self) -> dict[str, Any]:
        fields = {"samples", "mean", "std", "quantiles"}
        return {"results": {"__all__": fields}}

    @override
    def render(self, result: SampleResult | PosteriorResult, form: str) -> bytes:
        self._check_possible(self._diagnostics(result))
        self._check_within(result)
        return super().render(result, form)

    @override
    def answer(self, result: SampleResult | PosteriorResult) -> PosteriorAnswer:
        space, found = self.served.model.space, self.tensors(result)
        _, weights = self._drawn(result)
        std, quantiles = found.get("std"), found.get("quantiles")
        x_0 = space.to_model(found["samples"].flatten(0, 1)).unflatten(0, self.layout)
        read = self.others.label_probabilities(x_0, weights)
        labels, of_labels = self.others.labels, probabilities(found["samples"], weights, space)
        within = self._within(result)
        show = (lambda x: summaries(x, space)) if space.table is not None else Tensor.numpy
        results = [
            Posterior(
                samples=plain(samples, space),
                weights=weights[i].tolist(),
                mean=show(found["mean"][i]),
                std=None if std is None else show(std[i]),
                quantiles=None if quantiles is None else show(quantiles[i]),
                probabilities=None if of_labels is None else of_labels[i],
                label=None if labels is None else labels[i],
                labels=None if read is None else read[i],
                diagnostics=self._in_data_units(
                    diagnostics, i, None if within is None else within[i]
                ),
            )
            for i, (samples, diagnostics) in enumerate(
                zip(found["samples"], self._diagnostics(result), strict=True)
            )
        ]
        return PosteriorAnswer(
            model=self.served.name,
            seed=self.job.seed,
            exact=result.stats.batch_invariant,
            method=self.method.name,
            biased=self.method.biased,
            sampler=with_steps(self.sampler, self.served),
            shape=list(space.shape),
            columns=space.names,
            table=TableColumn.all_of(space),
            results=results,
            network_evaluations=result.stats.network_evaluations,
            checksum=self.served.checksum,
            deprecation=list(self.request.deprecation) or None,
        )

    @override
    def tensors(self, result: SampleResult | PosteriorResult) -> dict[str, Tensor]:
        samples, weights = self._drawn(result)
        summary = Summary.of(samples, weights, self.request.quantiles or ())
        found = {"samples": samples, "mean": summary.mean}
        if self.request.num_samples > 1:
            found["std"] = summary.std
        if self.request.quantiles is not None:
            found["quantiles"] = summary.quantiles
        of_numbers = numeric(self.served.model.space)
        return {
            name: x if name == "samples" else x.where(of_numbers, torch.nan)
            for name, x in found.items()
        }

    @override
    def lines(self, result: SampleResult | PosteriorResult) -> Table:
        space, (samples, weights) = self.served.model.space, self._drawn(result)
        names, rows = names_of(space), lines_of(samples.flatten(0, 1), space)
        if samples.shape[1] == 1:
            return names, rows
        numbers = torch.cartesian_prod(*map(torch.arange, samples.shape[:2])).tolist()
        each = zip(numbers, weights.flatten().tolist(), rows, strict=True)
        return ["row", "draw", "weight", *names], [[*at, w, *row] for at, w, row in each]

    @property
    @override
    def layout(self) -> tuple[int, int]:
        return len(self.observed.values), self.request.num_samples

    @override
    def strips(self, result: SampleResult | PosteriorResult) -> list[Strip]:
        (samples, _), shown = self._drawn(result), self.observed.picture
        if shown is None:
            return [Strip(each) for each in samples]
        return [Strip(*each) for each in zip(samples, *shown, strict=True)]

    def _drawn(self, result: SampleResult | PosteriorResult) -> tuple[Tensor, Tensor]:
        """Return the samples, [N, n, *event], data units, and their weights, float64 [N, n]."""
        x, weights = result.samples, torch.full(self.layout, 1 / self.layout[1]).double()
        if isinstance(result, PosteriorResult):
            count, seed = len(self.observed.values), self.job.seed
            picked, weights = self.method.gather(result.result, count, seed)
            x = picked.flatten(0, 1)
        found = self.estimates(x).unflatten(0, (self.layout[0], -1))
        if self.observed.limits is not None:
            found = self.observed.limits.choose(found, self.layout[1])
        return found, weights

    def _within(self, result: SampleResult | PosteriorResult) -> list[int] | None:
        """Count each row's draws within its limits; None without limits."""
        if self.observed.limits is None:
            return None
        found = self.estimates(result.samples).unflatten(0, (self.layout[0], -1))
        counts: list[int] = self.observed.limits.within(found).sum(1).tolist()
        return counts

    def _check_within(self, result: SampleResult | PosteriorResult) -> None:
        """Raise InvalidRequest if no draw of a row is within its limits."""
        counts = self._within(result) or []
        if 0 in counts:
            raise InvalidRequest(
                f"None of {self.layout[1] * self.tries} draws of row {counts.index(0)} is within "
                "its limits.",
                location="observed",
                index=counts.index(0),
                expected="limits that are likely, given the row's other cells",
                fix="Check the limits and the other cells, or ask for more samples.",
            )

    @override
    def estimates(self, x_0: Tensor) -> Tensor:
        """Convert as the base class does, and restore exact observations bit for bit."""
        x, exact = super().estimates(x_0), self.observed.exact
        if not bool(exact.any()):
            return x
        example = torch.arange(len(x)) // (self.request.num_samples * self.tries)
        return torch.where(exact[example], self.observed.values[example], x)

    def _diagnostics(
        self, result: SampleResult | PosteriorResult
    ) -> tuple[PosteriorDiagnostics, ...]:
        """Compute the diagnostics of each posterior, in model units."""
        count = len(self.observed.values)
        if isinstance(result, SampleResult):
            return self.chains
        return self.method.diagnose(result.result, count, self.served.model.T)

    def _in_data_units(
        self, found: PosteriorDiagnostics, example: int, within: int | None
    ) -> Diagnostics:
        """Convert diagnostics to data units, in the form of the answer.

        Args:
            found: the diagnostics of a posterior.
            example: its place.
            within: how many of its draws are within the row's limits; None without limits.
        """
        space, start = self.served.model.space, self.start
        gained, units = float(self.gained[example]), self.observed.warning(space, example)
        made, few = self.layout[1] * self.tries, None
        if within is not None and within < self.layout[1]:
            few = (
                f"{within} of {made} draws are within the limits, so some samples are there more "
                "than once: ask for more samples"
            )
        warnings = found.warning, units, None if start is None else start.warning, few
        scale = space.affine[1].flatten()
        noise = None  # one deviation does not describe elements with different scales
        if start is not None and bool((scale == scale[0]).all()):
            noise = start.noise * float(scale[0])
        evidence = found.log_evidence
        return Diagnostics(
            particles=found.particles,
            systems=found.systems,
            ess=min(found.ess, default=float(found.particles)),
            ess_by_step=list(found.ess),
            ancestors=found.ancestors,
            log_evidence=None if evidence is None else evidence + gained,
            log_evidence_error=found.log_evidence_error,
            warning="; ".join(filter(None, warnings)) or None,
            calibration=found.calibration,
            within=None if within is None else within / made,
            start=None if start is None else start.t,
            start_noise=noise,
        )

    def _check_possible(self, diagnostics: tuple[PosteriorDiagnostics, ...]) -> None:
        """Raise InvalidRequest if the model gives an observation no probability."""
        location = "expert" if self.others.labels is None else "label"
        if not self.observed.nothing:
            location = "observed"
        for example, each in enumerate(diagnostics):
            if each.log_evidence == float("-inf"):
                raise InvalidRequest(
                    f"The model gives observation {example} no probability.",
                    location=location,
                    index=example,
                    expected="values that are possible under the model",
                    fix="Check the units and which elements are known, or allow for noise "
                    "(noise_std, or flip_probability).",
                )


@contextmanager
def _refused(location: str) -> Iterator[None]:
    """Convert the library's ValueError into a problem at `location`."""
    try:
        yield
    except ValueError as error:
        raise refusal(error, location) from None


def _check_axes(particles: int, seen: int, dims: int) -> None:
    """Raise TooExpensive if the covariances of a system's particles take too much memory."""
    if particles * seen * dims > _MOST_AXES:
        raise TooExpensive(
            "The covariances of a system's particles take more memory than one request may.",
            location="method",
            received=f"{particles} particles by {seen} observed numbers by {dims} elements",
            expected=f"at most {_MOST_AXES}",
            fix="Ask for fewer particles or products, or the diagonal covariance.",
        )


def _sampler(asked: Ancestral, method: PosteriorMethod, T: int) -> Ancestral:
    """Return the request's sampler, with the method's default number of steps if it has none."""
    if asked.steps is None and method.default_steps is not None:
        return Ancestral(steps=min(T, method.default_steps))
    return asked
