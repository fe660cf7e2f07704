"""Diagnostics: how far the samples of a posterior can be trusted, in numbers and in words.

    log Z = log mean_k Z_k,     its error = max(std(Z_k) / mean(Z_k), std(log Z_k)) / sqrt(K)

over K independent systems of particles. The first of the errors is the mean's own, and it is never
more than 1, however far the systems are apart, for one of them then makes the mean; the second says
how far. The effective sample size alone misleads: a system that has lost the right mode has equal
weights. So the surviving ancestors and the spread of log Z go with it.
"""

import math
from dataclasses import dataclass
from typing import Self, final

from diffusion.posterior.particles import log_mean
from diffusion.posterior.systems import Cloud

#: Nats by which systems may differ in log Z (a standard deviation) before it is said.
_SPREAD = 1.0


@final
@dataclass(frozen=True)
class Diagnostics:
    """What the particles of one datum say of themselves.

    Attributes:
        particles: of each system.
        systems: how many independent ones.
        ess: effective sample size before each step, the mean over systems; empty without weights.
        ancestors: first particles from which a system's last ones descend, the median.
        log_evidence: log of the estimate of p(y), nats; None without weights.
        log_evidence_error: its standard error, from the spread of independent systems; None of one.
        warning: what is poor and how to mend it, in words; None where nothing is.
    """

    particles: int = 1
    systems: int = 1
    ess: tuple[float, ...] = ()
    ancestors: int = 1
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    warning: str | None = None

    @classmethod
    def of(cls, cloud: Cloud, most_steps: int) -> Self:
        """Of the K systems of one datum; a model of `most_steps` steps."""
        log_z, count = cloud.log_evidence, len(cloud.log_evidence)
        total = float(log_mean(log_z[None]))
        known = math.isfinite(total)
        error = None
        if count > 1 and known:
            of_mean, apart = float((log_z - total).exp().std()), float(log_z.std())
            error = (max(of_mean, apart) if math.isfinite(apart) else of_mean) / math.sqrt(count)
        found = cls(
            cloud.particles,
            count,
            tuple(cloud.ess.mean(0).tolist()),
            int(cloud.ancestors.median()),
            total,
            error,
        )
        spread = float(log_z.std()) if count > 1 and known else 0.0
        return cls(**{**vars(found), "warning": found._warn(spread, most_steps)})

    def _warn(self, spread: float, most_steps: int) -> str | None:
        assert self.log_evidence is not None  # `of` has weights
        if not math.isfinite(self.log_evidence):
            return (
                "the model gives what was observed no probability: check its units and which "
                "elements are known, or allow for noise"
            )
        steps, poor = len(self.ess), []
        if self.particles > 1 and self.ancestors == 1:
            poor.append(f"{self.particles} particles collapsed to 1 ancestor")
        if not spread <= _SPREAD:
            poor.append(f"independent systems differ by {spread:.1f} nats in the evidence")
        if not poor:
            return None
        more = min(most_steps, max(2 * steps, 250))
        fix = f"raise particles to {max(64, 4 * self.particles)}"
        return " and ".join(poor) + ": " + fix + (f" or steps to {more}" if more > steps else "")
