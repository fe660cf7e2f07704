"""What /inpaint and /denoise were told: which values were observed, where, and with how much noise.

r(x_0) = prod over known elements of N(y; x_0, noise^2), or of the flips of a binary channel
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.space import DataSpace
from service.arrays import Events, check_values, read_events, read_mask
from service.problems import InvalidRequest
from service.schemas import DenoiseRequest, InpaintRequest


@dataclass(frozen=True)
class Seen:
    """What was observed of N data.

    Attributes:
        values: [N, *event], data units; 0 where not known.
        known: bool [N, *event].
        noise: a standard deviation in data units, or a flip probability; 0 for exactly.
    """

    values: Tensor
    known: Tensor
    noise: float


def read_seen(request: InpaintRequest | DenoiseRequest, space: DataSpace) -> Seen:
    """What a request says was observed; InvalidRequest where it says nothing or nonsense."""
    noise = _noise(request, space)
    events = read_events(request.observed, space, "observed")
    known = _known(request, space, events)
    values = torch.where(known, events.values, 0.0)  # what was not seen may be anything
    if noise > 0 and space.kind != "bits":
        if not bool(torch.isfinite(values).all()):
            raise InvalidRequest(
                "observed holds NaN or an infinity.", location="observed", expected="finite numbers"
            )
    else:
        check_values(values, space, "observed")
    return Seen(values, known, noise)


def _noise(request: InpaintRequest | DenoiseRequest, space: DataSpace) -> float:
    bits = space.kind == "bits"
    mine, other = ("flip_probability", "noise_std") if bits else ("noise_std", "flip_probability")
    if getattr(request, other) is not None:
        raise InvalidRequest(
            f"{other} has no meaning for {'bits' if bits else 'real data'}.",
            location=other,
            received=getattr(request, other),
            expected=mine,
            fix=f"Send {mine} instead.",
        )
    noise = float(getattr(request, mine) or 0.0)
    if isinstance(request, DenoiseRequest) and noise == 0:
        raise InvalidRequest(
            "/denoise needs to know how much noise there is.",
            location=mine,
            received=getattr(request, mine),
            expected="a number above 0",
            fix=f"Send {mine}; what was seen exactly goes to /inpaint.",
        )
    return noise


def _known(request: InpaintRequest | DenoiseRequest, space: DataSpace, events: Events) -> Tensor:
    count = len(events.values)
    everything = torch.ones(count, *space.shape, dtype=torch.bool)
    if isinstance(request, DenoiseRequest):
        if events.opaque is not None:
            raise InvalidRequest(
                "A PNG in observed has transparent pixels; /denoise takes what was seen whole.",
                location="observed",
                fix="Send it to /inpaint with its noise_std.",
            )
        return everything
    if request.known is None and events.opaque is None:
        raise InvalidRequest(
            "Nothing says which values were observed.",
            location="known",
            expected="a mask, 1 or white where a value was observed, or transparent PNGs",
            fix="Send known; what was seen whole, with noise, goes to /denoise.",
        )
    known = everything
    if request.known is not None:
        known = read_mask(request.known, space, count, "known")
    if events.opaque is not None:
        known = known & events.opaque
    empty = (~known.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise InvalidRequest(
            f"Nothing is observed of datum {empty[0]}: its mask is all zero.",
            location="known",
            expected="at least one value observed",
            fix="Use /sample to draw without an observation.",
        )
    return known
