"""Report a fit's progress: a progress bar, TensorBoard scalars, and sheets of samples.

    held-out estimate = mean of K over a few rows of `valid`, from a few stratified terms each

Rows and noise are the same each time, so the curve shows changes of the model only. A conditional
network has a second curve: the same rows, each told by a family drawn at random. Its best weights
are the best by both curves, weighted as in training:

    (1 - share) K + share K_told

If the bound has no part in the objective, they are the best by the loss instead.
"""

import math
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from diffusion.families import observe_some
from diffusion.likelihood.bound import bound
from diffusion.likelihood.estimator import min_terms
from diffusion.model import DiffusionModel
from diffusion.noise import Stream, counter_noise
from diffusion.observation import Observation
from diffusion.process import Process
from diffusion.samplers import Ancestral, sample
from diffusion.space import Space
from training.config import ObservationsConfig, WatchConfig
from training.fit.objective import Objective
from training.progress import progress_bar
from training.sheet import sheet


def shown(space: Space, nats: float) -> float:
    """Convert a mean bound in nats to the data's unit; bits/dim has its sign flipped."""
    bits = nats / math.log(2)
    return -bits / space.dims if space.unit == "bits/dim" else bits


class Watch:
    """Reports a fit's progress, on the first rank only.

    Args:
        model: the model with the averaged weights.
        held_out: rows of `valid`, model units, on the model's device.
        gaps: what they lack (`DiffusionModel.left_out`); None for nothing.
        objective: of the fit; its convention is that of the bound that is shown.
        config: how much to measure, and how often.
        told: what the network is told in training; None for nothing.
        out: the run folder.
        first, last: the steps this run begins and ends at.
    """

    def __init__(
        self,
        model: DiffusionModel,
        held_out: Tensor,
        gaps: Observation | None,
        objective: Objective,
        config: WatchConfig,
        told: ObservationsConfig | None,
        out: Path,
        first: int,
        last: int,
    ) -> None:
        self.model, self.held_out, self.objective = model, held_out, objective
        self.gaps = gaps
        self.config, self.space, self.told = config, model.space, told
        self.seen = None if told is None else _observe(model.process, held_out, told, gaps)
        self.writer = SummaryWriter(str(out / "tensorboard"), purge_step=first)
        self.bar = progress_bar(last, "step", out.name, initial=first)
        self._smooth: float | None = None
        self._held: str = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bar.close()
        self.writer.close()

    def step(self, step: int, nats: float, scalars: dict[str, float]) -> None:
        """Report a finished step: its batch's mean bound (nats), and other scalars to plot."""
        value = shown(self.space, nats)
        self._smooth = value if self._smooth is None else 0.98 * self._smooth + 0.02 * value
        self.bar.update(1)
        self.bar.set_postfix_str(
            f"loss {self._smooth:.4g} {self.space.unit}{self._held}", refresh=False
        )
        self._scalars(step, {f"train/{self.space.unit}": value, **scalars})

    def look(self, step: int) -> Tensor:
        """Measure the averaged weights on the held-out rows: what early stopping compares, [N].

        Bounds in nats, float64; or minus the loss, if the bound has no part in it.
        """
        found = self._bounds(self.gaps)
        nats = float(found.mean())
        self._held = f", held-out {shown(self.space, nats):.4g}"
        scalars = {f"valid/{self.space.unit}": shown(self.space, nats)}
        if self.told is not None:
            share, of_told = self.told.share, self._bounds(self.seen)
            told = shown(self.space, float(of_told.mean()))
            self._held += f", told {told:.4g}"
            scalars[f"told/{self.space.unit}"] = told
            found = (1 - share) * found + share * of_told
        self._scalars(step, scalars)
        return found if self.objective.bound else -self._losses()

    @torch.no_grad()
    def _losses(self) -> Tensor:
        """Return each row's loss, a mean over `terms` steps from all over 1..T, float64 [N]."""
        x_0, count, T = self.held_out, self.config.terms, self.model.T
        share = 0.0 if self.told is None else self.told.share
        rows, total = torch.arange(len(x_0), device=x_0.device), x_0.new_zeros(len(x_0)).double()
        for k in range(count):
            t = 1 + ((k + (rows + 0.5) / len(rows)) / count * T).long().clamp(max=T - 1)
            noise = counter_noise(0, rows, k, Stream.TRAINING)
            total += (1 - share) * self.objective.rows(self.model, x_0, t, noise, self.gaps)[0]
            if share:
                total += share * self.objective.rows(self.model, x_0, t, noise, self.seen)[0]
        return total / count

    def _bounds(self, seen: Observation | None = None) -> Tensor:
        convention = self.objective.convention
        terms = max(self.config.terms, min_terms(self.model.T, convention))
        return bound(
            self.model,
            self.held_out,
            seed=0,
            convention=convention,
            terms=terms,
            observation=seen,
            batch=256,
        ).bound

    def draw(self, step: int) -> None:
        """Add a sheet of samples from the averaged weights to TensorBoard."""
        steps = min(self.config.sampler_steps, self.model.T)
        drawn = sample(self.model, self.config.samples, seed=0, sampler=Ancestral(steps=steps))
        picture = torch.from_numpy(sheet(self.space, self.space.to_data(drawn.cpu())))
        self.writer.add_image("samples", picture, step, dataformats="HWC")
        self.writer.flush()

    def _scalars(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)


def _observe(
    process: Process, x_0: Tensor, told: ObservationsConfig, gaps: Observation | None
) -> Observation:
    """Tell of every row of x_0 [N, *event], model units, by one of the families each."""
    rows = torch.arange(len(x_0), device=x_0.device)
    noise = counter_noise(0, rows, 0, Stream.OBSERVATION)
    empty = None if gaps is None else gaps.gaps
    return observe_some(told.families, 1.0, process, x_0, noise, empty).to_network()
