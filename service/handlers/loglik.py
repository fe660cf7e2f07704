"""Handles /loglik: the bound K on log p(x_0), and how an example compares with held-out data."""

import math
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from diffusion.checkpoint import Evaluation
from diffusion.likelihood import reference
from diffusion.likelihood.bound import check_convention, null_log_prob
from diffusion.likelihood.estimator import Choice, Steps, even_strata
from diffusion.likelihood.iwae import Trajectories
from diffusion.space import Convention
from service.catalogue import Served
from service.codecs.arrays import check_values, read_events
from service.codecs.json import BINARY, EVENTS, JSON, Columns
from service.codecs.rows import CSV, Table
from service.engine.admission import check_cost
from service.engine.jobs import BoundJob
from service.engine.results import LoglikResult
from service.errors import InvalidRequest, refusal
from service.handlers.base import Work, check_rows, seed_or_new
from service.handlers.given import read_gaps, read_known, told_of
from service.schemas.requests import LoglikRequest
from service.schemas.responses import (
    Band,
    ColumnPart,
    Loglik,
    LoglikAnswer,
    Parts,
    TableColumn,
)
from service.state import Backend

_OTHER_GAPS = "Rows are not compared if no held-out row has the same gaps."
TERM_BYTES = 80  # bytes of a term as JSON, usually less
_COLUMNS = ("bound", "standard_error", "relative_to_prior", "rarer_than", "typicality")


@final
@dataclass(frozen=True)
class Comparison:
    """How N examples compare with held-out data, [N] each; None if unknown."""

    rarer_than: Tensor | None = None
    typicality: Tensor | None = None
    bands: tuple[reference.Band, ...] = ()
    uncompared: str | None = None


@final
@dataclass(frozen=True)
class LoglikWork(Work[LoglikResult]):
    """Bounds on log p(x_0), of what is there and not given.

    Attributes:
        gaps: which elements are not there, bool [N, *shape].
        left_out: those and the ones that are given, which the bounds are not of.
    """

    served: Served
    job: BoundJob
    request: LoglikRequest
    gaps: Tensor
    left_out: Tensor
    offers = (JSON, BINARY, EVENTS, CSV)

    @classmethod
    def prepare(cls, request: LoglikRequest, backend: Backend) -> "LoglikWork":
        """Check a request and prepare its work; raise a Problem if it is not possible."""
        served, settings = backend.find(request.model), backend.settings
        space, count = served.model.space, len(request.data)
        check_rows(count, "data", settings.max_data, "NONEQ_MAX_DATA")
        convention = request.convention or space.default_convention
        seed = seed_or_new(request.seed)
        known = read_known(request, served, count)
        # Choose the terms of one example first, to know the cost before the data are read.
        one = _choose_terms(request, served, 1, seed, convention)
        if not one.count:
            raise InvalidRequest(
                "The convention 'paper' fixes the last step, so a chain of one step has no term.",
                location="steps" if request.steps else "convention",
                received=request.steps or convention,
                fix="Use 2 steps or more, or another convention.",
            )
        check_cost(count * (request.trajectories or 1) * one.count, settings)
        events = read_events(request.data, space, "data")
        gaps = read_gaps(events, request, served)
        check_values(events.values, space, "data")
        steps = _choose_terms(request, served, count, seed, convention)
        if bool(gaps.any()) and isinstance(steps, Steps):
            steps = replace(steps, expected=None)  # the profile is of whole examples
        x_0 = space.to_model(events.values)
        told = told_of(served.model, events.values, known, gaps)
        job = BoundJob(served.name, x_0, seed, steps, convention, told, version=served.version)
        check_cost(job.cost, settings)
        if request.per_step:
            job = replace(job, answer_bytes=job.cost * TERM_BYTES)
        left_out = gaps if known is None else gaps | known
        empty = left_out.flatten(1).all(1).nonzero().flatten().tolist()
        if empty:
            row = empty[0]
            raise InvalidRequest(
                f"Every element of example {row} is given or a gap, so nothing is left to bound.",
                location="known",
                index=row,
                expected="a mask with a 0 where an element is there and not given",
                fix="Leave out known, or give fewer elements.",
            )
        return cls(served, job, request, gaps, left_out)

    @property
    @override
    def arrays(self) -> dict[str, Any]:
        return {"results": True}

    @override
    def answer(self, result: LoglikResult) -> LoglikAnswer:
        columns = {name: x.tolist() for name, x in self._bounds(result).items()}
        per_bit, elements = math.log(2), self._elements.tolist()
        comparison, reasons = self._compare(result), self._reasons(result)
        parts = self._columns(result)
        rarer, typicality = (
            [None] * len(self.job.x_0) if x is None else [_finite(one) for one in x.tolist()]
            for x in (comparison.rarer_than, comparison.typicality)
        )
        results = [
            Loglik(
                bound=_finite(bound),
                standard_error=_finite(columns["standard_error"][i]),
                degrees_of_freedom=_finite(columns["degrees_of_freedom"][i] + 0 * bound),
                interval=_interval(*columns["interval"][i]),
                bits=_finite(bound / per_bit),
                bits_per_dim=_finite(-bound / per_bit / elements[i]),
                relative_to_prior=_finite(columns["relative_to_prior"][i]),
                rarer_than=rarer[i],
                typicality=typicality[i],
                bands=[_band(band, i) for band in comparison.bands] or None,
                columns=None if parts is None else parts[i],
                elements=elements[i],
                reason=reasons.get(i),
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
            exact=result.stats.batch_invariant,
            estimator=self.request.estimator,
            convention=self.job.convention,
            terms=self.job.positions * self.job.each,
            trajectories=self.request.trajectories,
            steps=self.request.steps or self.served.model.T,
            columns=self.served.model.space.names,
            table=TableColumn.all_of(self.served.model.space),
            uncompared=comparison.uncompared,
            reasons={str(i): reason for i, reason in reasons.items()},
            results=results,
            network_evaluations=result.stats.network_evaluations,
            checksum=self.served.checksum,
        )

    @override
    def check(self, form: str) -> None:
        """Accept every form: scores are numbers, whatever the data are."""

    @override
    def lines(self, result: LoglikResult) -> Table:
        found = self.tensors(result)
        names = [name for name in _COLUMNS if name in found]
        rows = list(zip(*(found[name].tolist() for name in names), strict=True))
        if "column_nats" not in found:
            return names, rows
        parts = found["column_nats"].tolist()
        columns = [f"nats of {name}" for name in self.served.model.space.names or ()]
        return names + columns, [[*row, *part] for row, part in zip(rows, parts, strict=True)]

    @override
    def tensors(self, result: LoglikResult) -> dict[str, Tensor]:
        found = self._bounds(result)
        comparison = self._compare(result)
        if comparison.rarer_than is not None:
            found["rarer_than"] = comparison.rarer_than
        if comparison.typicality is not None:
            found["typicality"] = comparison.typicality
            found["band_t"] = torch.tensor([[band.first, band.final] for band in comparison.bands])
            found["band_nats"] = torch.stack([band.nats for band in comparison.bands], 1)
            found["band_rarer_than"] = torch.stack([b.rarer_than for b in comparison.bands], 1)
        parts = self._parts(result)
        if parts is not None:
            found["column_nats"] = parts
            rarer = self._rarer_columns(parts)
            if rarer is not None:
                found["column_rarer_than"] = rarer
        if self.request.per_step:
            steps, values = self._steps(), result.values.view(len(self.job.x_0), -1)
            found |= {"term_t": steps.t, "term_weight": steps.weight, "term_value": values}
        return found

    def _bounds(self, result: LoglikResult) -> dict[str, Tensor]:
        """Compute the bound of each example and its parts."""
        model, job, bound = self.served.model, self.job, result.bound
        told = job.observation
        told = None if told is None else told.each(lambda part: part.to(model.device))
        null = null_log_prob(model, job.x_0.to(model.device), job.convention, told).cpu()
        return {
            "bound": bound.bound,
            "standard_error": bound.standard_error,
            "degrees_of_freedom": bound.freedom,
            "interval": bound.interval,
            "relative_to_prior": bound.bound - null,
            "prior": bound.prior,
            "steps": bound.steps,
            "last": bound.last,
            "gain": bound.gain,
            "elements": self._elements,
        }

    @property
    def _elements(self) -> Tensor:
        """How many elements each bound is of, int64 [N]."""
        return (~self.left_out).flatten(1).sum(1)

    def _parts(self, result: LoglikResult) -> Tensor | None:
        """Return each column's part of the bounds, nats [N, J], NaN where there is none."""
        if result.columns is None:
            return None
        return result.columns.where(~self.left_out, torch.nan)

    def _rarer_columns(self, parts: Tensor) -> Tensor | None:
        """Return the share of held-out rows whose part is larger; None if not comparable."""
        reference = self.served.reference
        if self._refusal() is not None or reference is None or self.request.known is not None:
            return None
        rarer, alike = reference.rarer_columns(parts), reference.alike(self.gaps)
        return None if rarer is None else rarer.where(alike[:, None], torch.nan)

    def _columns(self, result: LoglikResult) -> list[list[ColumnPart]] | None:
        """Return each column's part of the bounds, for the answer."""
        parts, names = self._parts(result), self.served.model.space.names
        if parts is None or names is None:
            return None
        compared = self._rarer_columns(parts)
        shares = torch.full_like(parts, math.nan) if compared is None else compared
        each = zip(parts.tolist(), shares.tolist(), self.left_out.tolist(), strict=True)
        return [
            [
                ColumnPart(name=name, nats=_finite(nats), rarer_than=_finite(share), given=out)
                for name, nats, share, out in zip(names, *row, strict=True)
            ]
            for row in each
        ]

    def _compare(self, result: LoglikResult) -> Comparison:
        """Compare the data with held-out data whose bounds were estimated in the same way."""
        if self.request.known is not None:
            return Comparison(
                uncompared="Held-out data were bounded whole, not given some elements."
            )
        steps, found = self.job.steps, result.bound
        known, convention, why = self.served.reference, self.job.convention, self._refusal()
        if why is None and known is not None and isinstance(steps, Steps):
            alike = known.alike(self.gaps)
            if not bool(alike.any()):
                return Comparison(uncompared=_OTHER_GAPS)
            closed = found.last if convention == "paper" else None
            among = known.stand(steps, convention, result.values, found.prior, closed)
            if bool(alike.all()):
                return Comparison(among.rarer_than, among.typicality, among.bands)
            rarer, typicality = (
                x.where(alike, math.nan) for x in (among.rarer_than, among.typicality)
            )
            return Comparison(rarer, typicality, among.bands, _OTHER_GAPS)
        measured = None if bool(self.gaps.any()) else self._measured()
        if measured is None:
            return Comparison(uncompared=f"Not measured on held-out data: {why}.")
        each = [math.nan if math.isnan(x) else measured.rarer_than(x) for x in found.bound.tolist()]
        told = f"Typicality is not known: {why}."
        return Comparison(torch.tensor(each, dtype=torch.float64), uncompared=told)

    def _refusal(self) -> str | None:
        """Say why the bounds cannot be compared with the reference; None if they can."""
        known, convention = self.served.reference, self.job.convention
        whole = self.request.steps in (None, self.served.model.T)
        if not (whole and isinstance(self.job.steps, Steps)):
            return "held-out data's terms are known only for the whole chain"
        if known is None:
            return "the model ships without held-out data's terms"
        return known.refusal(convention)

    def _measured(self) -> Evaluation | None:
        """Find the evaluation of held-out data by the same estimator, hence with equal noise."""
        asked, T = self.request, self.served.model.T
        steps = None if asked.steps == T else asked.steps
        every = even_strata(steps or T, self.job.convention).count
        terms = None if asked.trajectories or self.job.positions >= every else self.job.positions
        of = steps, asked.spacing if steps else None, asked.trajectories, terms, asked.strata
        for e in self.served.metadata.evaluation:
            its = e.steps, e.spacing, e.trajectories, e.terms, e.strata
            same = its == of and e.convention == self.job.convention
            if same and e.split == "test" and e.quantiles is not None:
                return e
        return None

    def _reasons(self, result: LoglikResult) -> dict[int, str]:
        """Explain why examples have no finite bound, by index."""
        lost = (~result.bound.bound.isfinite()).nonzero().flatten().tolist()
        return {i: self._reason(result, i) for i in lost}

    def _reason(self, result: LoglikResult, example: int) -> str:
        t = self._steps().t[example]
        values = result.values.view(len(self.job.x_0), -1)[example]
        far = float(self.job.x_0[example].abs().max())
        where = f"Its largest value is {far:.3g} in the model's units, in which data are about 1"
        wrong = values.isnan() | values.isposinf()
        if bool(wrong.any()):
            step = int(t[int(wrong.nonzero()[0])])
            return (
                f"The bound of this example is not a number: at t = {step} the network's output is "
                f"not finite. {where}."
            )
        if bool(values.isneginf().any()):
            step = int(t[int(values.isneginf().nonzero()[0])])
            return f"This example is impossible under the model: its term at t = {step} is -inf."
        return f"The bound of this example is too large for a number. {where}."

    def _steps(self) -> Steps:
        """Return the terms of each example as a table."""
        steps = self.job.steps
        return steps.steps(len(self.job.x_0)) if isinstance(steps, Trajectories) else steps

    def _terms(self, result: LoglikResult, example: int) -> Columns:
        steps, values = self._steps(), result.values.view(len(self.job.x_0), -1)
        columns = {"t": steps.t[example], "weight": steps.weight, "value": values[example]}
        return Columns({name: x.numpy() for name, x in columns.items()})


def _choose_terms(
    request: LoglikRequest, served: Served, count: int, seed: int, convention: Convention
) -> Steps | Trajectories:
    """Choose the terms of the first `count` examples; raise a Problem if that is not possible."""
    model = served.model
    try:
        check_convention(model, convention, told=request.known is not None)
    except ValueError as error:
        raise refusal(error, "convention", convention) from None
    asked = request.model_dump(include=set(Choice.model_fields))
    said = [name for name in ("steps", "target_error", "terms") if asked[name] is not None]
    if request.trajectories is not None:
        return _whole(request, model.T, [*said, *(["strata"] * (request.strata != "even"))])
    try:
        steps = Choice(**asked).resolve(model, torch.arange(count), seed, convention)
        # The profile is of whole examples.
        return steps if request.known is None else replace(steps, expected=None)
    except ValueError as error:
        location = said[0] if said else "strata"
        raise refusal(error, location, asked[location]) from None


def _whole(request: LoglikRequest, T: int, said: list[str]) -> Trajectories:
    """Choose whole trajectories, which exclude any other choice of terms."""
    assert request.trajectories is not None  # the caller has checked
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


def _band(band: reference.Band, example: int) -> Band:
    nats, rarer = (_finite(float(x[example])) for x in (band.nats, band.rarer_than))
    return Band(part=band.name, first=band.first, final=band.final, nats=nats, rarer_than=rarer)


def _interval(low: float, high: float) -> tuple[float, float] | None:
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _finite(value: float) -> float | None:
    """Replace a value that is not finite by None, since JSON has no infinity."""
    return value if math.isfinite(value) else None
