"""Sinusoidal embeddings of a network's time, and Fourier features of its input.

With h = dim / 2 frequencies w_i = 10000^(-i / (h - freq_shift)), i = 0..h-1,

    embedding(u) = [sin(w_0 u) .. sin(w_{h-1} u), cos(w_0 u) .. cos(w_{h-1} u)]

(Vaswani et al. 2017, section 3.5; Ho et al. 2020, appendix B). u is measured in steps, 0 to about
1000; for the clock "log_snr", log(alpha_bar / (1 - alpha_bar)) is rescaled to that range.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Clock = Literal["step", "log_snr"]

#: Beyond +-20 the amplitude of the noise (or the signal) is below 10^-4 of the total.
LOG_SNR_LIMIT = 20.0
#: One nat of log-SNR counts as 25 steps, so that -20..20 fills the 1000 steps the frequencies suit.
STEPS_PER_NAT = 25.0


def as_steps(time: Tensor, clock: Clock) -> Tensor:
    """Convert the clock's time to a number of steps u.

    u = time on the clock "step"; u = 25 (20 - log_snr) with log_snr clamped to +-20 on the clock
    "log_snr", so that u grows with the noise on either clock and is finite at alpha_bar = 0 and 1.

    Args:
        time: [B], steps (t - 1) or log-SNR in nats, which may be infinite.
        clock: what `time` is.

    Returns:
        [B], float32.
    """
    time = time.float()
    if clock == "step":
        return time
    return STEPS_PER_NAT * (LOG_SNR_LIMIT - time.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT))


def sinusoidal(
    steps: Tensor, dim: int, *, flip_sin_to_cos: bool = True, freq_shift: float = 0.0
) -> Tensor:
    """Embed `steps` at `dim // 2` frequencies (an odd `dim` ends with a zero).

    Args:
        steps: [B], float.
        dim: width of the embedding, at least 2.
        flip_sin_to_cos: put cosines first, the default of diffusers' UNet2DModel.
        freq_shift: subtracted from the number of frequencies in the exponent; DDPM's code has 1.

    Returns:
        [B, dim], float32.
    """
    half = dim // 2
    exponent = -math.log(10_000.0) * torch.arange(half, dtype=torch.float32, device=steps.device)
    angle = steps.float()[:, None] * torch.exp(exponent / (half - freq_shift))[None, :]
    parts = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return F.pad(torch.cat(parts, dim=-1), (0, dim % 2))


def with_fourier(x_t: Tensor, exponents: Sequence[int]) -> Tensor:
    """Append sin(2^k pi x_t) and cos(2^k pi x_t), for each k in `exponents`, to the channels.

    They help a network distinguish neighbouring 8-bit values (VDM, Kingma et al. 2021, appendix C).

    Args:
        x_t: [B, C, ...] in model units.
        exponents: the values of k; may be empty.

    Returns:
        [B, C (1 + 2 len(exponents)), ...]: x_t, then the sine and cosine for each k in turn.
    """
    angles = [2.0**k * math.pi * x_t for k in exponents]
    return torch.cat([x_t, *(f(angle) for angle in angles for f in (torch.sin, torch.cos))], dim=1)
