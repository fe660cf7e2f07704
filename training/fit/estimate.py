"""Estimate how long a fit will take by timing a few optimiser steps and network calls.

    seconds = steps * step + network rows * row,    both timed on this machine

Network rows are those of the held-out checks, the evaluation, the report and the sheet of samples.
The profile, which is mostly not network time, is timed at a few of its points. Simple densities are
left out. Both times are means, not minima, because other work will slow the fit just as much.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusion.likelihood import reference
from diffusion.likelihood.estimator import min_terms
from diffusion.process import MEASURED
from training.evaluate import entropy as report
from training.evaluate.calibration import COUNT, DRAWS, STEPS, certifiable
from training.evaluate.profile import measured_points, profiled
from training.fit.loop import Fit
from training.sheet import SHEET_ROWS

LEAST = 3  # timed calls of each kind, after one warm-up call
SHARE, LONGEST = 0.05, 1.0  # most time spent timing: share of the work itself, and seconds


@dataclass(frozen=True)
class Estimate:
    """Seconds for the fit with its held-out checks (at most), and for what follows it."""

    fit: float
    after: float

    def __str__(self) -> str:
        return f"at most {_words(self.fit)} to fit, {_words(self.after)} to measure and draw"


def measure(fit: Fit, *, evaluate: bool = True) -> Estimate:
    """Estimate the time of a fit that has not run yet.

    Args:
        fit: a fit made for this purpose only, because timing it changes its weights.
        evaluate: whether the fit will be followed by an evaluation.
    """
    config, dataset, model, T = fit.config, fit.dataset, fit.averaged, fit.model.T

    def advance() -> None:
        fit._advance()
        fit.step += 1

    batch = min(256, config.batch)
    x_t = dataset.space.to_model(dataset.train[:1]).to(fit.ranks.device)
    x_t = x_t.expand(batch, *dataset.space.event).contiguous()
    t = torch.arange(batch, device=x_t.device) % T + 1

    @torch.inference_mode()
    def call() -> None:
        model.predict(x_t, t).kernel(t - 1)

    step, row = _mean(advance, config.steps), _mean(call, config.steps) / batch
    watch, evaluation = config.watch, config.evaluation
    terms = max(watch.terms, min_terms(T, fit.objective.convention))
    look = min(watch.data, len(dataset.valid)) * terms * (1 if config.observations is None else 2)
    sheet = watch.samples * min(watch.sampler_steps, T)
    left = config.steps
    looking = left // watch.every * look + left // (watch.sheets or watch.every) * sheet
    after = SHEET_ROWS[dataset.space.kind] * (evaluation.sampler_steps or T)
    seconds = 0.0
    if evaluate or config.variance in MEASURED:
        seconds = _profile(fit)
    if evaluate:
        rows = min(evaluation.data or len(dataset.test), len(dataset.test))
        after += rows * (evaluation.terms or T)
        after += min(reference.MOST, len(dataset.test)) * (reference.choice(model).terms or T)
        after += report.POINTS * min(report.ROWS.get(dataset.space.kind, 0), len(dataset.test))
    if evaluate and certifiable(dataset) and config.observations is not None:
        told, process = config.observations.families, model.process
        cases = sum(len(family.cases(process, dataset.space)) for family in told)
        after += cases * min(COUNT, len(dataset.test)) * DRAWS * STEPS
    return Estimate(left * step + looking * row, after * row + seconds)


def _profile(fit: Fit) -> float:
    """Seconds of a profile at all its points, extrapolated from a few."""
    config, few = fit.config, (2, 5)
    rows = fit.dataset.train[: config.profile.rows // 2]
    x_0, gaps = fit.dataset.space.to_model(rows), fit.averaged.left_out(rows)
    spent = []
    for points in few:
        began = time.monotonic()
        settings = config.profile.model_copy(update={"points": points})
        profiled(fit.averaged, x_0, settings, config.variance, gaps=gaps)
        spent.append(time.monotonic() - began)
    points = len(measured_points(fit.model.T, config.profile.points))
    each = max(0.0, spent[1] - spent[0]) / (few[1] - few[0])
    return spent[0] + each * max(0, points - few[0])


def _mean(work: Callable[[], None], times: int) -> float:
    """Mean seconds per call of `work`, which the fit does `times` times."""
    work()
    began, done, spent = time.monotonic(), 0, 0.0
    while done < LEAST or spent < min(LONGEST, SHARE * times * spent / done):
        work()
        done += 1
        spent = time.monotonic() - began
    return spent / done


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
