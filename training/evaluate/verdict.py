"""Whether a model of one's own data is ready to be used, by its held-out bound and its baselines.

It is not where K - L_null is below 0, or where a simple density of the same data is better by more
than two standard errors and by more than `MARGIN`.
"""

import math
from dataclasses import dataclass

from diffusion.checkpoint import Metadata

MARGIN = 0.05
"""Bits an element by which a simple density may be better: what the chain's steps lose, at most."""


@dataclass(frozen=True)
class Verdict:
    """In words.

    Attributes:
        ready: whether nothing speaks against the model.
        reasons: what speaks against it, or what it was held against.
    """

    ready: bool
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        head = "ready" if self.ready else "NOT READY"
        return "\n".join(f"{head}: {reason}" for reason in self.reasons)


def verdict(metadata: Metadata) -> Verdict | None:
    """The verdict on a model; None where it was not evaluated on `test` in its own convention."""
    convention = metadata.space.default_convention
    found = [
        e
        for e in metadata.evaluation
        if e.whole and e.split == "test" and e.convention == convention
    ]
    if not found:
        return None
    own, bit = found[-1], math.log(2)
    against = []
    if own.bound < own.null:
        against.append(
            f"K - L_null is {(own.bound - own.null) / bit:.4g} bits on held-out rows: pure noise "
            "describes them better than the model does; give it more data"
        )
    for b in metadata.baselines:
        lead = -b.gain / bit
        if lead > max(2 * b.standard_error / bit, MARGIN * metadata.space.dims):
            against.append(
                f"{b.name}, is better by {lead:.4g} ± {b.standard_error / bit:.2g} bits a held-out "
                "row: use that, or give the model more data"
            )
    if against:
        return Verdict(False, tuple(against))
    if not metadata.baselines:
        return Verdict(True, (f"K - L_null is {(own.bound - own.null) / bit:.4g} bits",))
    best = max(metadata.baselines, key=lambda b: b.bound)
    gain, error = best.gain / bit, best.standard_error / bit
    than = "better than" if gain > 2 * error else "within the error of"
    return Verdict(
        True,
        (
            f"{than} the best simple density ({best.name}): {gain:+.4g} ± {error:.2g} bits a row, "
            f"on {best.count} held-out rows",
        ),
    )


def beside(metadata: Metadata) -> str:
    """The baselines as a Markdown table, in bits, the best first."""
    lines = [
        "| simple density | rows | log2 density a row | the model's gain | standard error |",
        "|---|---|---|---|---|",
    ]
    bit = math.log(2)
    lines += [
        f"| {b.name} | {b.count} | {b.bound / bit:.4f} | {b.gain / bit:+.4f} "
        f"| {b.standard_error / bit:.4f} |"
        for b in metadata.baselines
    ]
    return "\n".join(lines)
