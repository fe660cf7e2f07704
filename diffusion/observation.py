"""Observations r(x_0): what was seen of an example, and kernels multiplied by it.

    y = A x_0 + noise,     p~(x_s | x_t) = p(x_s | x_t) r(x_s) / Z~_t(x_t)

Products with a Normal or a Bernoulli kernel have closed forms, draws and Z~ both (Sohl-Dickstein et
al. 2015, Section 2.5).
"""

import math
from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from diffusion.conditioned import Conditioned
from diffusion.distributions import LOG_2PI, Bernoulli, Distribution, Normal
from diffusion.operators import Dense, LinearOperator, Mask
from diffusion.rows import Rows, row_sum
from diffusion.space import DataSpace

_ELEMENTS = Mask()


@final
@dataclass(frozen=True)
class Observation(Rows):
    """What was seen of N data, as a factor over A x_0 in model units.

    Attributes:
        factor: [N, *seen]; infinite variance, or a logit of 0, where nothing was seen.
        operator: A; of bits a `Mask`.
    """

    factor: Distribution
    operator: LinearOperator = _ELEMENTS

    @classmethod
    def of_reals(cls, y: Tensor, known: Tensor, noise_std: Tensor | float = 0.0) -> Self:
        """y = x_0 + noise_std n where known; with 0 the values themselves.

        Args:
            y: [N, *event], model units; ignored where not known.
            known: bool [N, *event].
            noise_std: model units, a number or broadcastable to `y`.
        """
        var = torch.as_tensor(noise_std, dtype=y.dtype, device=y.device).square()
        seen = torch.where(known, var, torch.inf)
        return cls(Normal(torch.where(known, y, 0.0), seen.expand_as(y).contiguous()))

    @classmethod
    def of_linear(
        cls,
        operator: LinearOperator,
        y: Tensor,
        event: tuple[int, ...],
        noise_std: Tensor | float = 0.0,
    ) -> Self:
        """y = A x_0 + noise_std n.

        Args:
            operator: A.
            y: [N, *seen], model units.
            event: the shape of an example.
            noise_std: model units, a number or broadcastable to `y`.

        Raises:
            ValueError: shapes that do not fit, or a singular A seen without noise.
        """
        wanted = operator.seen(event)
        if tuple(y.shape[1:]) != wanted:
            raise ValueError(
                f"of data of shape {list(event)} this operator sees {list(wanted)}, came values of "
                f"shape {list(y.shape[1:])}"
            )
        seen = cls.of_reals(y, torch.ones_like(y, dtype=torch.bool), noise_std)
        if not isinstance(operator, Mask):
            exact = (seen.factor.var == 0).flatten(1).any(0)
            rows = operator.matrix(event, y.device)[exact]
            rows = rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-300)  # of any units
            if len(rows) and int(torch.linalg.matrix_rank(rows, rtol=1e-6)) < len(rows):
                raise ValueError(
                    f"of {len(rows)} numbers seen without noise some follow from the others (a "
                    "singular operator): leave them out, or give a noise above 0"
                )
        return cls(seen.factor, operator)

    @classmethod
    def of_bits(cls, y: Tensor, known: Tensor, flip_probability: float = 0.0) -> Self:
        """y = x_0, each bit flipped with `flip_probability` in [0, 1/2), where known."""
        strength = math.inf if flip_probability == 0 else math.log(1 / flip_probability - 1)
        logits = torch.where(y > 0.5, strength, -strength).to(y.dtype)
        return cls(Bernoulli(torch.where(known, logits, 0.0)))

    def __len__(self) -> int:
        """N."""
        return len(self.known)

    @property
    def known(self) -> Tensor:
        """Which numbers were seen, bool [N, *seen]."""
        return self.factor.known

    @property
    def values(self) -> Tensor:
        """What was seen where all is known, [N, *seen]: numbers, or bits."""
        return self.factor.values

    def one_noise(self, most: float) -> float | None:
        """The noise that all elements have, each seen for itself, below `most`; else None."""
        if not isinstance(self.operator, Mask) or not bool(self.known.all()):
            return None
        noise = self.factor.noise
        first = float(noise.flatten()[0])
        same = bool(((noise - first).abs() <= 1e-5 * first).all())  # to rounding, in other units
        return first if 0 < first < most and same else None

    @property
    def count(self) -> Tensor:
        """How many numbers were seen of each example, int64 [N]."""
        return row_sum(self.known)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Mean and variance, or logits, [N, *seen] each."""
        return self.factor.tensors

    def multiply(self, kernel: Distribution) -> tuple[Distribution | Conditioned, Tensor]:
        """p r / Z~ of a kernel p(x_s | x_t) of the process's own family, and log Z~.

        r(x) is the density of y given x_0 = x; of bits its probability.

        Returns:
            What the product is drawn from, and log Z~ in nats, float64 [B].
        """
        if not isinstance(self.operator, Mask):
            matrix, off, noise = self.linear(kernel.mean)
            spread = matrix * kernel.var.expand_as(kernel.mean).double().flatten(1)[:, None]
            total = spread @ matrix.mT + torch.diag_embed(noise)
            product = Conditioned.on(kernel, matrix, off, total)
            return product, product.log_z
        return kernel.observe(self.factor)

    def linear(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A row by row, y - A x and the noise's variances, for N rows x [N, *event].

        Masks differ from example to example, so only what was seen has its row; where one example
        has fewer than another, rows of zeros follow, which have variance 1 / (2 pi) and so add
        nothing to a log-density.

        Returns:
            float64 [N or 1, M, D], [N, M] and [N, M].
        """
        factor = self.factor
        off = (factor.mean - self.operator.forward(x)).double().flatten(1)
        var = factor.var.expand_as(factor.mean).double().flatten(1)
        if not isinstance(self.operator, Mask):
            return self.operator.matrix(x.shape[1:], x.device)[None], off, var
        known = self.known.flatten(1)
        count = max(1, int(known.sum(1).max()))
        place = known.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
        real = known.gather(1, place)
        matrix = torch.zeros(*place.shape, known.shape[1], dtype=torch.float64, device=x.device)
        matrix.scatter_(2, place[:, :, None], real.double()[:, :, None])
        none = math.exp(-LOG_2PI)
        return (
            matrix,
            torch.where(real, off.gather(1, place), 0.0),
            torch.where(real, var.gather(1, place), none),
        )


def in_model_units(
    space: DataSpace,
    operator: LinearOperator,
    y: Tensor,
    known: Tensor,
    noise: Tensor,
) -> tuple[Observation, Tensor]:
    """`Process.observe` of reals: r in model units, x = c z + b, and the gain in log p(y).

        y = A x + noise n   <=>   (y - A b) / c = A z + (noise / c) n

    where all elements have one scale c; where each is seen for itself, each has its own; else c
    goes into the matrix, y - A b = (A c) z + noise n.
    """
    shift, scale = (part.broadcast_to(space.shape)[None] for part in space.affine)
    if isinstance(operator, Mask):
        gained = -row_sum(torch.where(known, scale.log(), 0.0))
        std = (noise.double() / scale).float().expand_as(y)
        return Observation.of_reals(space.to_model(y), known, std), gained
    first = float(scale.flatten()[0])
    if bool((scale != first).any()):
        shift = operator.forward(shift).flatten(1)
        rows = operator.matrix(space.shape, y.device) * scale.flatten()
        y, noise = y.flatten(1), noise.expand_as(y).flatten(1)
        ours: LinearOperator = Dense(rows=tuple(map(tuple, rows.tolist())))
        first = 1.0
    else:
        shift, ours = operator.forward(shift), operator
    z, std = (y.double() - shift) / first, noise.double() / first
    found = Observation.of_linear(ours, z.float(), space.shape, std.float())
    return found, -math.log(first) * found.count.double()
