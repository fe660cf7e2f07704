"""The exact network for a table drawn from a mixture: Gaussian numbers and independent categories.

    p(x_0) = sum_k w_k N(numbers; mu_k, C_k) prod_j P_kj(category of column j)

Given x_t and what was seen, the numbers of a component are conditioned as those of a
`GaussianMixture` are, and its categories by Bayes' rule; gaps are left out. So p(x_0 | cells) is
known of any cells.
"""

import copy
import math
from collections.abc import Sequence
from typing import Literal, Self, final

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from diffusion.categorical import Blocks
from diffusion.networks.base import NetworkSettings, check_vector
from diffusion.networks.gaussian_mixture import SURE, GaussianMixture, GaussianMixtureConfig
from diffusion.networks.mixture import Mixture, split_seen
from diffusion.noise import Noise

_LEAST, _IMPOSSIBLE = 1e-12, 1e-30
#: Deviations beyond which a number moves the others no further: it is wrong, hardly all of them.
FAR = 5.0
_EXACT = SURE / (1 - SURE)  # the precision of a number that was seen
_LOG_2PI = math.log(2 * math.pi)
#: Numbers in the matrices that are made at a time, to keep them in the processor's cache.
_CACHED = 1 << 17
#: Rows that share their precisions, on average, for which one matrix is made for all of them.
_ALIKE = 4


class TableMixtureConfig(NetworkSettings):
    """The configuration of a `TableMixture`.

    Attributes:
        components: how many.
        numbers: the columns of numbers, which come first in model units.
        base: for each category column the probabilities that the process decays to.
    """

    kind: Literal["table-mixture"] = "table-mixture"
    components: int = Field(ge=1)
    numbers: int = Field(ge=0)
    base: tuple[tuple[float, ...], ...] = ()

    @property
    def features(self) -> int:
        """The elements of a row in model units."""
        return self.numbers + sum(map(len, self.base))

    @property
    def outputs(self) -> Literal[1, 2]:
        """Two per element where there are numbers: the second has their variance."""
        return 2 if self.numbers else 1

    @property
    def reads(self) -> tuple[str, str | None] | None:  # type: ignore[override]
        """Predictions of x_0, and the moment variance of numbers."""
        return "x_0", "moment" if self.numbers else None

    @override
    def check(self, event: tuple[int, ...], T: int) -> None:
        check_vector(event, self.features)


@final
class TableMixture(Mixture):
    """The mixture; the module's docstring has the equation."""

    p: Tensor
    pi: Tensor

    def __init__(self, config: TableMixtureConfig) -> None:
        super().__init__(config.components)
        self.config, self.blocks = config, Blocks(tuple(map(len, config.base)))
        pi = torch.tensor([p for column in config.base for p in column], dtype=torch.float64)
        self.register_buffer("pi", pi)
        self.register_buffer("p", pi.repeat(config.components, 1))
        K, R = config.components, config.numbers
        whole = GaussianMixtureConfig(components=K, features=max(R, 1))
        self.gaussians = GaussianMixture(whole) if R else None

    @classmethod
    def from_values(
        cls,
        base: Sequence[Sequence[float]],
        weights: Tensor,
        means: Tensor,
        covariances: Tensor,
        p: Tensor,
    ) -> Self:
        """Build the mixture of the given components.

        Args:
            base: as in the configuration.
            weights: [K], positive, sum 1.
            means: [K, R]; R may be 0.
            covariances: [K, R, R], symmetric, positive definite.
            p: probabilities of the categories of each column, [K, sum of K_j].
        """
        K, R = means.shape
        made = cls(
            TableMixtureConfig(components=K, numbers=R, base=tuple(tuple(each) for each in base))
        )
        made.weights.copy_(weights / weights.sum())
        made.p.copy_(p)
        if made.gaussians is not None:
            gaussians = GaussianMixture.from_values(weights, means, covariances)
            made.gaussians.load_state_dict(gaussians.state_dict())
        return made

    @override
    def given(self, x_t: Tensor, *condition: Tensor) -> Tensor:
        """Return E[x_0 | x_t, y] of numbers and log P(x_0 | x_t, y) of categories.

        If there are numbers, then log(Var(x_0 | x_t, y) / (1 - alpha_bar)), and 0 of categories.

        Args:
            x_t: [B, D], or [B, 4 D] with what was seen.
            condition: log-SNR, [B].
        """
        x_t, told = split_seen(x_t, self.config.features)
        nothing = torch.zeros_like(x_t)
        value, share, scale = (nothing,) * 3 if told is None else told
        (x, c), (y, d), (share, _), (gap, empty) = map(self._split, (x_t, value, share, scale < 0))
        time = condition[0].double()[:, None]
        signal, noise = time.sigmoid(), (-time).sigmoid().clamp_min(_LEAST)
        reached = signal * c + (1 - signal) * self.blocks.each(self.blocks.total(c * self.pi))
        likelihood = torch.where(empty, 1.0, reached) * (d + self._even).clamp_min(0)
        seen = share.double().clamp(max=SURE)
        seen = seen / (1 - seen)
        precision = torch.where(gap, 0.0, signal / noise + seen)
        own = torch.where(gap, 0.0, signal.sqrt() / noise * x.double()) + y.double() * (1 + seen)
        most = FAR * precision + FAR * precision.sqrt()
        pulled = own.clamp(-most, most)
        log_joint, means, within, log_z = self._components(precision, pulled, likelihood)
        p = log_joint.softmax(1)[:, :, None]
        mean = (p * means).sum(1)
        var = (p * (within + (means - mean[:, None]).square())).sum(1)
        # Of itself it says all: its prior is a standard Normal's, as the map makes it.
        far = own.abs() > most
        mean = torch.where(far, own / (1 + precision), mean)
        var = torch.where(far, 1 / (1 + precision), var)
        prior = (p * (self.p.log() - self._each(log_z)).exp()).sum(1)
        log_p = (likelihood * prior).clamp_min(_IMPOSSIBLE).log()
        outputs = [mean, log_p]
        if self.config.numbers:
            outputs += [var.clamp_min(_LEAST).log() - noise.log(), torch.zeros_like(log_p)]
        return torch.cat(outputs, 1).to(x_t.dtype)

    def log_prob(self, z: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the log-density of numbers and log-probability of categories, nats [N].

        Args:
            z: [N, D], model units.
            known: which elements are no gaps, bool [N, D]; None for all.
        """
        known = torch.ones_like(z, dtype=torch.bool) if known is None else known
        (_, _), (seen, _) = self._split(z), self._split(known)
        log_joint = self._known(z, known)[0]
        # What `conditioned` leaves out, as it is common to the components.
        constant = 0.5 * (math.log(_EXACT) - _LOG_2PI) * seen.sum(1)
        return log_joint.logsumexp(1) + constant

    def _known(self, z: Tensor, known: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Condition each component on what is known.

        Returns log p(k, what is known) up to a constant of the row [N, K], and the mean and the
        variance of each number given k and what is known, [N, K, R].

        Args:
            z: [N, D], model units.
            known: which elements are no gaps, bool [N, D].
        """
        (x, c), (seen, filled) = self._split(z.double()), self._split(known)
        precision = seen.double() * _EXACT
        likelihood = torch.where(filled, c, 1.0)
        log_joint, means, within, _ = self._components(precision, precision * x, likelihood)
        return log_joint, means, within

    def spread(self, factor: float) -> "TableMixture":
        """The mixture with all covariances times a factor."""
        made = copy.deepcopy(self)
        if made.gaussians is not None:
            made.gaussians.variances *= factor
        return made

    def places(self, z: Tensor, known: Tensor, ends: Tensor) -> Tensor:
        """Return P(number < end | what is known) of each end, float64 as `ends` [E, N, R].

        Args:
            z: [N, D], model units.
            known: which elements are, bool [N, D].
            ends: of numbers that are not, [E, N, R].
        """
        log_joint, means, within = self._known(z, known)
        p, deviation = log_joint.softmax(1)[:, :, None], within.clamp_min(_LEAST).sqrt()
        below = [torch.special.ndtr((end[:, None] - means) / deviation) for end in ends.double()]
        return torch.stack([(p * each).sum(1) for each in below])

    def sample(self, noise: Noise) -> Tensor:
        """Draw from p(x_0) once per row of the noise, float32 [B, D]."""
        R = self.config.numbers
        u = noise.uniform((1 + self.config.features,)).double()
        k = self.choose(u[:, 0])
        gumbel = self.p[k].log() - (-u[:, 1 + R :].log()).log()
        hot = self.blocks.one_hot(self.blocks.codes(gumbel))
        if self.gaussians is None:
            return hot
        return torch.cat((self._drawn(k, torch.special.ndtri(u[:, 1 : 1 + R])), hot), 1)

    def _drawn(self, k: Tensor, normal: Tensor) -> Tensor:
        """Return numbers of components k [B] from standard normal ones, float32 [B, R]."""
        assert self.gaussians is not None  # as the caller knows
        scaled = self.gaussians.variances[k].sqrt() * normal
        turned = torch.einsum("bij,bj->bi", self.gaussians.axes[k], scaled)
        return (self.gaussians.means[k] + turned).float()

    @property
    def _even(self) -> Tensor:
        """1 / K_j of each category, [1, W]."""
        sizes = torch.tensor(self.blocks.sizes, dtype=torch.float64, device=self.pi.device)
        return self.blocks.each(1 / sizes[None])

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Split elements into those of numbers and of categories."""
        return x[:, : self.config.numbers], x[:, self.config.numbers :]

    def _each(self, of_block: Tensor) -> Tensor:
        """Give every category its column's number: [B, K, J] to [B, K, W]."""
        return of_block[:, :, self.blocks.block.to(of_block.device)]

    def _components(
        self, precision: Tensor, pulled: Tensor, likelihood: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Condition each component.

        Args:
            precision: of numbers, [B or 1, R], as in `GaussianMixture.conditioned`.
            pulled: [B, R], likewise.
            likelihood: of each category, [B, W].

        Returns:
            log p(k, all that is given) up to a constant of the row, [B, K]; means and variances of
            numbers, [B, K, R]; and log Z, what the likelihood is on average, [B, K, J].
        """
        B, K = len(likelihood), len(self.weights)
        each = (likelihood[:, None] * self.p).flatten(0, 1)
        log_z = self.blocks.total(each).clamp_min(_IMPOSSIBLE).log()
        log_z = log_z.view(B, K, len(self.blocks.sizes))
        if self.gaussians is None:
            none = likelihood.new_zeros(B, K, 0)
            return self.weights.log() + log_z.sum(2), none, none, log_z
        found, means, within = self._numbers(precision.expand(B, -1), pulled)
        return found + log_z.sum(2), means, within, log_z

    def _numbers(self, precision: Tensor, pulled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`GaussianMixture.conditioned`; on a CPU rows of equal precisions share a matrix."""
        gaussians = self.gaussians
        assert gaussians is not None  # as the caller knows
        if pulled.is_cuda:
            return gaussians.conditioned(precision, pulled)
        B, (K, R) = len(pulled), gaussians.means.shape
        log_joint = pulled.new_empty(B, K)
        means, within = pulled.new_empty(2, B, K, R).unbind()
        even = (precision == precision[:, :1]).all(1)
        rows = even.nonzero()[:, 0]
        found = gaussians.conditioned_evenly(precision[rows, :1], pulled[rows])
        log_joint[rows], means[rows], within[rows] = found
        odd = (~even).nonzero()[:, 0]
        different, of = precision[odd].unique(dim=0, return_inverse=True)
        alike = len(different) * _ALIKE <= len(odd)
        if alike:
            parts = [odd[of == i] for i in range(len(different))]
        else:
            parts = list(odd.split(max(1, _CACHED // (K * R * R))))
        covariances = gaussians.covariances
        for rows in parts:
            own = precision[rows[:1]] if alike else precision[rows]
            found = gaussians.conditioned(own, pulled[rows], covariances)
            log_joint[rows], means[rows], within[rows] = found
        return log_joint, means, within
