"""The categorical process (multinomial diffusion), and predictions under it.

    q(x_t | x_{t-1}) = (1 - beta_t) x_{t-1} + beta_t pi,    pi = a distribution over the categories
    p(x_s | x_t) mixes q(x_s | x_t, x_0) over P(x_0 | x_t)

Hoogeboom, Nielsen, Jaini, Forre and Welling 2021; Austin et al. 2021. With a = alpha_bar_s,
f_k = q(x_t | x_s = k), Z_j = q(x_t | x_0 = j) and probabilities p_j of x_0 the mixture is

    p(x_s = k | x_t) = f_k (a p_k / Z_k + (1 - a) pi_k sum_j p_j / Z_j)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self, final

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import override

from diffusion.categorical import Blocks, Categorical, of_codes
from diffusion.distributions import Tilt
from diffusion.noise import Noise
from diffusion.observation import Observation
from diffusion.operators import LinearOperator, Mask
from diffusion.process.base import (
    Config,
    Estimate,
    Output,
    Prediction,
    PredictionKind,
    Process,
    VarianceKind,
)
from diffusion.profile import Profile
from diffusion.rows import per_row
from diffusion.schedule import InverseTimeSchedule, Schedule
from diffusion.space import Space

_TINY = 1e-30


class CategoricalConfig(Config):
    """A categorical process of T steps whose columns decay to their `base` probabilities.

    Attributes:
        base: pi of each column, K_j probabilities above 0 that sum to 1.
    """

    kind: Literal["categorical"] = "categorical"
    schedule: Schedule = InverseTimeSchedule()
    base: tuple[tuple[float, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _are_probabilities(self) -> Self:
        for column in self.base:
            if len(column) < 2 or min(column) <= 0 or abs(sum(column) - 1) > 1e-6:
                raise ValueError(
                    "`base` has for each column the probabilities of at least two categories, "
                    f"above 0, sum 1; came {list(column)}"
                )
        return self

    @override
    def build(self) -> "CategoricalProcess":
        return CategoricalProcess(self.schedule.beta(self.T), self.base)


@final
class CategoricalProcess(Process):
    """The process q(x_t | x_{t-1}) = (1 - beta_t) x_{t-1} + beta_t pi on one-hot rows.

    Args:
        beta: float64 [T + 1].
        base: pi of each column.
    """

    continuous = False
    pi: Tensor

    def __init__(self, beta: Tensor, base: Sequence[Sequence[float]]) -> None:
        super().__init__(beta)
        self.blocks = Blocks(tuple(map(len, base)))
        flat = torch.tensor([p for column in base for p in column], dtype=torch.float64)
        self.register_buffer("pi", flat / self.blocks.each(self.blocks.total(flat[None]))[0])

    @override
    def prior(self, event: Sequence[int], rows: int) -> Categorical:
        return self._of(self.pi.float().expand(rows, -1))

    @override
    def nothing_seen(self, event: Sequence[int], rows: int) -> Observation:
        zero = torch.zeros(rows, self.blocks.width, device=self.beta.device)
        return Observation(Categorical(zero, self.blocks))

    @override
    def observe(
        self, space: Space, operator: LinearOperator, y: Tensor, known: Tensor, noise: Tensor
    ) -> tuple[Observation, Tensor]:
        if not isinstance(operator, Mask):
            raise ValueError("categories can only be observed one by one: leave out `operator`")
        found = of_codes(self.blocks, y, known, noise)
        return Observation(found), torch.zeros(len(y)).double()

    @override
    def saw(self, y: Tensor, known: Tensor, noise: Tensor) -> Observation:
        first = self.blocks.first.to(y.device)
        return Observation(
            of_codes(self.blocks, self.blocks.codes(y), known[:, first], noise[:, first])
        )

    @override
    def together(self, chosen: Tensor) -> Tensor:
        return self.blocks.each(chosen[:, self.blocks.first.to(chosen.device)])

    @override
    def noisy(self, x_0: Tensor, level: Tensor, u: Tensor) -> Tensor:
        """Replace a category by another, each alike, with the probability `level`."""
        sizes = torch.tensor(self.blocks.sizes, dtype=torch.float64)[None]
        others = level / self.blocks.each((sizes - 1).clamp_min(1))
        p = torch.where(x_0 > 0.5, 1 - level, others)
        found = self.blocks.codes(p.clamp_min(_TINY).log() - (-u.double().log()).log())
        return self.blocks.one_hot(found).to(x_0)

    @property
    @override
    def noise_levels(self) -> tuple[float, float]:
        return 0.01, 0.4

    @override
    def output(
        self,
        prediction: PredictionKind,
        variance: VarianceKind | None,
        profile: Profile | None = None,
    ) -> "CategoricalOutput":
        return CategoricalOutput(prediction, variance, profile, process=self)

    @property
    @override
    def most_noise(self) -> float:
        return 0.0

    @override
    def matched_step(self, noise: float) -> tuple[int, float, float]:
        raise ValueError("a matched start is for reals and bits: use 'auto' or 'twisted'")

    @property
    @override
    def power(self) -> float:
        return float(self.pi.mean())

    @override
    def step_noise(self, noise: Noise, event: Sequence[int]) -> Tensor:
        return noise.uniform(event)

    @override
    def likelihood(self, x_t: Tensor, t: Tensor, s: Tensor) -> Tilt:
        each = self._reached(x_t, self.rate(t, s)).log()
        return Tilt(each.new_zeros(len(each)), each, torch.zeros_like(each))

    @override
    def guide(self, slope: Tensor, var: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """Return the slope unchanged, taking log r_s as linear about x_t."""
        return slope

    @override
    def marginal(self, x_0: Tensor, t: Tensor) -> Categorical:
        """Return alpha_bar_t x_0 + (1 - alpha_bar_t) pi."""
        return self._decay(x_0, self.alpha_bar[t])

    @override
    def forward_kernel(self, x_s: Tensor, t: Tensor, s: Tensor | None = None) -> Categorical:
        """Return r x_s + (1 - r) pi, r = alpha_bar_t / alpha_bar_s."""
        return self._decay(x_s, self.rate(t, t - 1 if s is None else s))

    @override
    def bridge(self, x_a: Tensor, x_t: Tensor, t: Tensor, s: Tensor, a: Tensor) -> Categorical:
        """Apply Bayes' rule: q(x_t | x_s) q(x_s | x_a), normalised."""
        before = self._decay(x_a, self.rate(s, a)).logits
        after = self._reached(x_t, self.rate(t, s)).log()
        return Categorical(before + after.to(before), self.blocks)

    def mix(self, log_p: Tensor, x_t: Tensor, t: Tensor, s: Tensor) -> Categorical:
        """Return sum over x_0 of P(x_0 | x_t) q(x_s | x_t, x_0), exact at any stride.

        Args:
            log_p: log P(x_0 | x_t), [B, width].
            x_t: one-hot [B, width].
            t: int64 [B].
            s: int64 [B], s < t.
        """
        p, pi = log_p.double().exp(), self.pi
        later = per_row(self.alpha_bar[s], p)
        after = self._reached(x_t, self.rate(t, s))
        weighed = p / self._reached(x_t, self.alpha_bar[t])
        total = self.blocks.each(self.blocks.total(weighed))
        found = after * (later * weighed + (1 - later) * pi * total)
        return Categorical(found.clamp_min(0).log().to(log_p.dtype), self.blocks)

    def _reached(self, x_t: Tensor, rate: Tensor) -> Tensor:
        """Return q(x_t | x_s = k) of every k, float64 [B, width]; rate a_t / a_s."""
        x = x_t.double()
        here = self.blocks.each(self.blocks.total(x * self.pi))
        return per_row(rate, x) * x + (1 - per_row(rate, x)) * here

    def _decay(self, x: Tensor, rate: Tensor) -> Categorical:
        x64, each = x.double(), per_row(rate, x.double())
        return self._of((each * x64 + (1 - each) * self.pi).to(x.dtype))

    def _of(self, p: Tensor) -> Categorical:
        return Categorical(p.log(), self.blocks)


@final
@dataclass(frozen=True)
class CategoricalPrediction(Prediction):
    """A prediction of P(x_0 | x_t), mixed through q(x_s | x_t, x_0) to give the kernel.

    Attributes:
        log_p: log P(x_0 | x_t), [B, width].
    """

    process: CategoricalProcess
    x_t: Tensor
    t: Tensor
    log_p: Tensor
    fixed: Tensor | None = None

    @property
    def x_0(self) -> Tensor:  # type: ignore[override]
        """The probabilities of x_0, [B, width]."""
        return self.log_p.exp()

    @override
    def pinned(self, values: Tensor, fixed: Tensor) -> Self:
        blocks = self.process.blocks
        some = blocks.each(blocks.total(values)) > 0.5  # a gap has no category
        certain = torch.where((values > 0.5) | ~some, 0.0, -torch.inf).to(self.log_p)
        return replace(self, log_p=torch.where(fixed, certain, self.log_p), fixed=fixed)

    @override
    def draw(
        self,
        x_t: Tensor,
        columns: Sequence[Tensor],
        previous: Tensor,
        own: Tensor | bool,
        s: Tensor,
        noise: Noise,
        observation: Observation | None,
    ) -> Tensor:
        kernel = self.kernel(s)
        found = kernel if observation is None else observation.multiply(kernel)[0]
        return found.sample(noise)

    @override
    def carried(self, previous: Tensor) -> Tensor:
        # The largest of NaN is some category, so NaN has to be carried over by hand.
        return torch.add(self.x_0, previous, alpha=0.0)

    @override
    def clipped(self, low: Tensor | None = None, high: Tensor | None = None) -> Self:
        """Return it unchanged: probabilities need no clamping."""
        return self

    @override
    def error(self, x_0: Tensor) -> Tensor:
        """Return -log P(x_0 | x_t), a mean over columns, [B]."""
        log_p = Categorical(self.log_p, self.process.blocks)
        among = None if self.fixed is None else ~self.fixed
        return -log_p.log_prob(x_0, among) / len(self.process.blocks.sizes)

    @override
    def given(
        self, observation: Observation, s: Tensor, estimate: Estimate
    ) -> tuple[Categorical, Tensor]:
        """Apply Bayes' rule to x_0 column by column; unobserved ones keep p(x_s | x_t)."""
        found, log_r = observation.multiply(Categorical(self.log_p, self.process.blocks))
        assert isinstance(found, Categorical)
        return self.process.mix(found.log_p, self.x_t, self.t, s), log_r

    @override
    def kernel(self, s: Tensor) -> Categorical:
        return self.process.mix(self.log_p, self.x_t, self.t, s)

    @override
    def at(self, x_t: Tensor) -> Self:
        return replace(self, x_t=x_t)


@final
@dataclass(frozen=True)
class CategoricalOutput(Output):
    """Reads the network's output as the logits of x_0."""

    process: CategoricalProcess = field(kw_only=True)

    @property
    @override
    def count(self) -> int:
        return 1

    @override
    def check(self, space: Space) -> None:
        if self.prediction != "x_0" or self.variance is not None:
            raise ValueError(
                "a categorical model predicts 'x_0' and has no variance, came prediction "
                f"{self.prediction!r}, variance {self.variance!r}"
            )

    @override
    def read(
        self,
        output: Tensor,
        x_t: Tensor,
        t: Tensor,
        of_x_0: Tensor | Sequence[Tensor] | None = None,
    ) -> CategoricalPrediction:
        """Read the logits of P(x_0 | x_t), each block on its own."""
        log_p = self.process.blocks.normalised(output.to(x_t.dtype))
        return CategoricalPrediction(self.process, x_t, t, log_p)

    @property
    @override
    def own(self) -> bool:
        return True

    @override
    def table(self, t: Tensor, s: Tensor) -> Tensor:
        """Return zeros: there is no table."""
        return torch.zeros(len(t), 6, dtype=torch.float64)
