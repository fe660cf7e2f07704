"""How long a fit of one's own data takes here: measured by a little of each kind of work.

    seconds = steps * step + network rows * row,    both timed on this machine as it is now

Rows are those of the looks, the profile, the evaluation, the report and the sheet of samples, so
that what comes after the fit is told too.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from diffusion.likelihood.estimator import min_terms
from training.evaluate import entropy as report
from training.evaluate.profile import measured_points
from training.fit.loop import Fit
from training.sheet import SHEET_ROWS

TRIED = 3  # of each kind of work; the quickest counts, for the first ones wake the machine


@dataclass(frozen=True)
class Estimate:
    """Seconds of the fit with its looks, at most, and of what comes after it."""

    fit: float
    after: float

    def __str__(self) -> str:
        return f"at most {_words(self.fit)} to fit, {_words(self.after)} to measure and draw"


def measure(fit: Fit, *, evaluate: bool = True) -> Estimate:
    """The estimate for a fit not yet run; its weights change, so it is of no use afterwards.

    Args:
        fit: a fit of its own, thrown away.
        evaluate: whether it will be evaluated at its end.
    """
    config, dataset, model, T = fit.config, fit.dataset, fit.averaged, fit.model.T

    def advance() -> None:
        fit._advance()
        fit.step += 1

    batch = min(256, config.batch)
    x_t = dataset.space.to_model(dataset.train[:1]).to(fit.ranks.device)
    x_t = x_t.expand(batch, *dataset.space.shape).contiguous()
    t = torch.arange(batch, device=x_t.device) % T + 1

    @torch.inference_mode()
    def call() -> None:
        model.predict(x_t, t).kernel(t - 1)

    step, row = _quickest(advance), _quickest(call) / batch
    watch, evaluation = config.watch, config.evaluation
    terms = max(watch.terms, min_terms(T, fit.objective.convention))
    look = min(watch.data, len(dataset.valid)) * terms
    sheet = watch.samples * min(watch.sampler_steps, T)
    left = config.steps
    looking = left // watch.every * look + left // (watch.sheets or watch.every) * sheet
    after = SHEET_ROWS[dataset.space.kind] * (evaluation.sampler_steps or T)
    profile = config.profile
    points = len(measured_points(T, profile.points))
    if evaluate or config.variance == "optimal":
        after += points * 2 * min(profile.rows // 2, len(dataset.train))
    if evaluate:
        rows = min(evaluation.data or len(dataset.test), len(dataset.test))
        after += rows * (evaluation.terms or T)
        after += report.POINTS * min(report.ROWS[dataset.space.kind], len(dataset.test))
    return Estimate(left * step + looking * row, after * row)


def _quickest(work: Callable[[], None]) -> float:
    found = []
    for _ in range(TRIED + 1):
        began = time.monotonic()
        work()
        found.append(time.monotonic() - began)
    return min(found[1:])


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
