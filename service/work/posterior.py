"""/inpaint and /denoise: draws from p(x_0) r(x_0), r what was observed.

    matched: independent noise on everything is that of some step, so the plain chain from there
    product: p(x_s | x_t) r(x_s), the 2015 paper's kernel with the same r at every step; biased

`auto` takes the matched start wherever it holds, and says which method answered.
"""

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.posterior import MatchedStart, Observation, matched_start
from diffusion.process import BinomialProcess
from service.answers import Diagnostics, Posterior, PosteriorAnswer
from service.arrays import plain
from service.engine.jobs import ChainJob, ChainResult
from service.engine.limits import check_cost
from service.models import Served
from service.problems import InvalidRequest
from service.schemas import DenoiseRequest, InpaintRequest
from service.settings import Settings
from service.sheets import Strip
from service.work.base import Work, check_rows, make_plan, settle_seed, stated
from service.work.seen import Seen, read_seen

METHODS = ("auto", "product")


@final
@dataclass(frozen=True)
class PosteriorWork(Work[ChainResult]):
    """Draws from p(x_0) r(x_0); row i n + j of the job is sample j of datum i."""

    served: Served
    job: ChainJob
    request: InpaintRequest | DenoiseRequest
    seen: Seen
    matched: MatchedStart | None

    @classmethod
    def prepare(
        cls,
        request: InpaintRequest | DenoiseRequest,
        served: Served,
        settings: Settings,
    ) -> "PosteriorWork":
        """The work, or the problem that forbids it."""
        _check_method(request)
        count, each = len(request.observed), request.num_samples
        check_rows(count, "observed", settings.max_data, "NONEQ_MAX_DATA")
        check_rows(count * each, "num_samples", settings.max_samples, "NONEQ_MAX_SAMPLES")
        seen = read_seen(request, served.model.space)
        matched = _match(request, served, seen)
        plan = make_plan(request.sampler, served, None if matched is None else matched.t)
        check_cost(count * each * len(plan), settings)
        job = ChainJob(
            served.name,
            count * each,
            settle_seed(request.seed),
            plan,
            start=None if matched is None else matched.x_t.repeat_interleave(each, 0),
            observation=None if matched is not None else _observation(served, seen, each),
        )
        return cls(served, job, request, seen, matched)

    @property
    @override
    def arrays(self) -> dict[str, Any]:
        return {"results": {"__all__": {"samples", "mean", "std"}}}

    @override
    def answer(self, result: ChainResult) -> PosteriorAnswer:
        space, found = self.served.model.space, self.tensors(result)
        std = found.get("std")
        results = [
            Posterior(
                samples=plain(samples, space),
                mean=found["mean"][i].numpy(),
                std=None if std is None else std[i].numpy(),
                diagnostics=self._diagnostics(),
            )
            for i, samples in enumerate(found["samples"])
        ]
        return PosteriorAnswer(
            model=self.served.name,
            seed=self.job.seed,
            exact=result.exact,
            method=self.method,
            biased=self.matched is None,
            sampler=stated(self.request.sampler, self.served),
            shape=list(space.shape),
            results=results,
            network_evaluations=result.network_evaluations,
        )

    @property
    def method(self) -> Literal["product", "matched"]:
        """Which method answers."""
        return "product" if self.matched is None else "matched"

    @override
    def tensors(self, result: ChainResult) -> dict[str, Tensor]:
        samples = self._samples(result)
        found = {"samples": samples, "mean": samples.mean(1)}
        if self.request.num_samples > 1:
            found["std"] = samples.std(1)
        return found

    @property
    @override
    def layout(self) -> tuple[int, int]:
        return len(self.seen.values), self.request.num_samples

    @override
    def strips(self, result: ChainResult) -> list[Strip]:
        seen = zip(self._samples(result), self.seen.values, self.seen.known, strict=True)
        return [Strip(samples, values, known) for samples, values, known in seen]

    def _samples(self, result: ChainResult) -> Tensor:
        """[N, n, *event], data units; what was seen exactly is put back bit for bit."""
        shape = (len(self.seen.values), self.request.num_samples, *self.served.model.space.shape)
        return self.estimates(result.samples).reshape(shape)

    @override
    def estimates(self, x_0: Tensor) -> Tensor:
        x = super().estimates(x_0)
        if self.seen.noise > 0:
            return x
        datum = torch.arange(len(x)) // self.request.num_samples
        return torch.where(self.seen.known[datum], self.seen.values[datum], x)

    def _diagnostics(self) -> Diagnostics:
        noise = None if self.matched is None else self.matched.noise
        if noise is not None and self.served.model.space.kind != "bits":
            noise *= _scale(self.served)[0].item()
        return Diagnostics(
            particles=1,
            ess=1.0,
            ancestors=1,
            start=None if self.matched is None else self.matched.t,
            start_noise=noise,
        )


def _check_method(request: InpaintRequest | DenoiseRequest) -> None:
    if request.method not in METHODS:
        raise InvalidRequest(
            f"Method {request.method!r} is not in this version.",
            location="method",
            received=request.method,
            expected=list(METHODS),
            fix="'product' is the 2015 paper's, biased; 'auto' takes the matched start, which is "
            "not, where everything was observed with noise.",
        )
    if request.particles not in (None, 1):
        raise InvalidRequest(
            "The methods of this version carry one particle: more would not be weighted.",
            location="particles",
            received=request.particles,
            expected=[None, 1],
            fix="Leave particles out, and ask for more samples with num_samples.",
        )


def _match(
    request: InpaintRequest | DenoiseRequest, served: Served, seen: Seen
) -> MatchedStart | None:
    """The matched start, where the observation's noise is that of one step on every element."""
    model = served.model
    if request.method != "auto" or seen.noise == 0 or not bool(seen.known.all()):
        return None
    if isinstance(model.process, BinomialProcess):
        fair = model.process.base_rate == 0.5
        return matched_start(model, seen.values, seen.noise) if fair else None
    scale = _scale(served)
    if bool((scale != scale[0]).any()):
        return None
    noise = seen.noise / scale[0].item()
    return matched_start(model, model.space.to_model(seen.values), noise)


def _observation(served: Served, seen: Seen, each: int) -> Observation:
    """The factor over x_0, model units, for every row."""
    known = seen.known.repeat_interleave(each, 0)
    space = served.model.space
    y = space.to_model(seen.values).repeat_interleave(each, 0)
    if space.kind == "bits":
        return Observation.of_bits(y, known, seen.noise)
    column = _scale(served).reshape(-1, *[1] * (len(space.shape) - 1))
    return Observation.of_reals(y, known, (seen.noise / column).float())


def _scale(served: Served) -> Tensor:
    """Data units a model unit, float64: one number, or one for each element of the first axis."""
    return torch.tensor(served.model.space.scale, dtype=torch.float64).reshape(-1)
