"""What a request says was observed: which numbers, through what, and with how much noise.

y = A x_0 + noise n, or bits of a binary channel; all in data units
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.operators import AveragePooling, Blur, Dense, LinearOperator, Mask
from diffusion.space import DataSpace
from service.codecs.arrays import Events, check_values, read_events, read_mask, refusal
from service.errors import InvalidRequest, TooExpensive
from service.schemas.conditions import Conditions

_MOST_NUMBERS = 1024  # seen through an operator: a step solves for all of them together
_WEIGHTS = 1e-12, 1e12  # a row's greatest, of an operator
_FARTHEST = 1e6  # of what was seen, in standard deviations of data or of noise, whichever is more
_NOISIEST = 1e9  # in standard deviations of data
_FINEST = 1e-12  # likewise: less is none, for float32 does not hold its square
_SCALED = 2.0  # of 255: an image within so much of 0 was scaled by its sender


@dataclass(frozen=True)
class Seen:
    """What was observed of N data.

    Attributes:
        values: y, [N, *seen], data units; 0 where not known.
        known: bool [N, *seen].
        noise: standard deviations in data units, [N, *seen] or one for all; of bits the flip
            probability; 0 for exactly.
        operator: A.
    """

    values: Tensor
    known: Tensor
    noise: Tensor
    operator: LinearOperator

    @property
    def nothing(self) -> bool:
        """Whether r = 1."""
        return not bool(self.known.any())

    @property
    def exact(self) -> Tensor:
        """Which elements of the data are known as they are, bool [N, *seen]; only by a `Mask`."""
        return self.known & (self.noise == 0) & isinstance(self.operator, Mask)

    def warnings(self, space: DataSpace) -> tuple[str | None, ...]:
        """What is suspect of each example's numbers, in words."""
        count = len(self.values)
        if space.levels is None or space.levels < 16 or isinstance(self.operator, Dense):
            return (None,) * count
        size = self.values.abs().flatten(1).amax(1)
        top = space.levels - 1
        said = (
            f"what was observed is within {_SCALED:g} of 0, where this model's data are 0 to {top}:"
            f" if your images are 0 to 1 or -1 to 1, scale them, and their noise, to 0..{top}"
        )
        return tuple(said if 0 < most <= _SCALED else None for most in size.tolist())

    @property
    def picture(self) -> tuple[Tensor, Tensor] | None:
        """y and which of it is known as data to look at, [N, *event]; None where it is none."""
        if self.nothing:
            return None
        if isinstance(self.operator, AveragePooling):
            size, shape = self.operator.size, self.values.shape[1:]
            axes = 1 if len(shape) == 1 else 2
            event = (*shape[:-axes], *(n * size for n in shape[-axes:]))
            whole = self.operator.adjoint(self.values, event) * size**axes
            return whole, torch.ones_like(whole, dtype=torch.bool)
        if isinstance(self.operator, Mask | Blur):
            return self.values, self.known
        return None


def read_seen(request: Conditions, space: DataSpace) -> Seen:
    """What a request says was observed; InvalidRequest where it says nothing or nonsense."""
    if request.observed is None:
        return _nothing(request, space)
    operator, seen = request.through, space
    if not isinstance(operator, Mask):
        seen = _seen_space(operator, space)
    noise = _noise(request, space)
    events = read_events(request.observed, seen, "observed", space.dtype)
    noise = _fit_noise(noise, seen, len(events.values), request)
    known = _known(request, seen, events)
    values = torch.where(known, events.values, 0.0)  # what was not seen may be anything
    if not bool(torch.isfinite(values).all()):
        raise InvalidRequest(
            "observed holds NaN or an infinity, or a number beyond float32.",
            location="observed",
            expected="finite numbers",
            fix="Replace it, or say in known that it was not seen.",
        )
    if space.kind != "bits":
        noise = _check_sizes(values, known, noise, operator, space)
    found = Seen(values, known, noise, operator)
    if isinstance(operator, Mask):
        as_they_are = known if space.kind == "bits" else found.exact
        check_values(torch.where(as_they_are, values, 0.0), space, "observed")
    else:
        _check_range(found, space)
    return found


def _nothing(request: Conditions, space: DataSpace) -> Seen:
    """r = 1, where something else multiplies p(x_0)."""
    if request.beside.label is None and request.beside.expert is None:
        raise InvalidRequest(
            "observed: Field required",
            location="observed",
            expected="what was seen, or a label, or times another model",
            fix="Use /sample to draw without an observation.",
        )
    for name in ("known", "operator", "noise_std", "flip_probability"):
        if name in request.model_fields_set and getattr(request, name) is not None:
            raise InvalidRequest(
                f"{name} says how something was observed, and nothing was.",
                location=name,
                fix=f"Send observed, or leave out {name}.",
            )
    empty = torch.zeros(request.count, *space.shape)
    return Seen(empty, torch.zeros_like(empty, dtype=torch.bool), torch.tensor(0.0), Mask())


def _seen_space(operator: LinearOperator, space: DataSpace) -> DataSpace:
    """What is seen through an operator, as a space: its shape, and PNGs where it is an image."""
    if space.kind == "bits":
        raise InvalidRequest(
            "Bits are seen one by one, each as it is or flipped.",
            location="operator",
            received=operator.model_dump(include={"kind"}),
            fix="Leave out operator; known says which were seen.",
        )
    try:
        shape = operator.seen(space.shape)
    except ValueError as error:
        raise refusal(error, "operator") from None
    if math.prod(shape) > _MOST_NUMBERS:
        raise TooExpensive(
            "An operator sees more numbers of an example than can be solved for together.",
            location="operator",
            received=math.prod(shape),
            expected=f"at most {_MOST_NUMBERS}",
            fix="See less: coarser blocks, fewer rows; a mask may see everything.",
        )
    return DataSpace(kind="image" if len(shape) == 3 else "vector", shape=shape)


def _noise(request: Conditions, space: DataSpace) -> object:
    """What the request says of the noise that this space has."""
    mine = space.noise_name
    of = {"noise_std": "bits", "flip_probability": "real data"}  # whose noise the other is not
    (other,) = of.keys() - {mine}
    if getattr(request, other) is not None:
        raise InvalidRequest(
            f"{other} has no meaning for {of[other]}.",
            location=other,
            expected=mine,
            fix=f"Send {mine} instead.",
        )
    return getattr(request, mine)


def _fit_noise(noise: object, seen: DataSpace, count: int, request: Conditions) -> Tensor:
    """One number for all, or [N, *seen]."""
    name = seen.noise_name
    if isinstance(noise, list | Tensor):
        found = _array(noise, seen, count)
    else:
        found = torch.tensor(float(noise or 0.0), dtype=torch.float64)  # type: ignore[arg-type]
    if not bool((found >= 0).all() & found.isfinite().all()):
        raise InvalidRequest(
            f"{name} holds numbers that are no standard deviations.",
            location=name,
            expected="finite numbers of at least 0",
        )
    if request.noisy and not bool((found > 0).all()):
        raise InvalidRequest(
            "/denoise needs to know how much noise there is.",
            location=name,
            received=None if noise is None or isinstance(noise, list | Tensor) else noise,
            expected="numbers above 0",
            fix=f"Send {name}; what was seen exactly goes to /inpaint.",
        )
    return found


def _array(noise: "list[object] | Tensor", seen: DataSpace, count: int) -> Tensor:
    """[N, *seen], from an array for all data or one each."""
    depth = noise.ndim if isinstance(noise, Tensor) else _depth(noise)
    grey = len(seen.shape) == 3 and seen.shape[0] == 1
    if depth == len(seen.shape) or (grey and depth == 2):
        noise = noise[None] if isinstance(noise, Tensor) else [noise]
    found = read_events(noise, seen, "noise_std").values
    if len(found) not in (1, count):
        raise InvalidRequest(
            f"There are {len(found)} arrays of noise for {count} data.",
            location="noise_std",
            fix="Send one for all, or one each.",
        )
    return found.expand(count, *seen.shape)


def _depth(value: object) -> int:
    """Of nested lists."""
    return 1 + _depth(value[0]) if isinstance(value, list) and value else 0


def _known(request: Conditions, seen: DataSpace, events: Events) -> Tensor:
    count = len(events.values)
    everything = torch.ones(count, *seen.shape, dtype=torch.bool)
    masked = isinstance(request.through, Mask)
    if request.noisy or not masked:
        if events.opaque is not None:
            raise InvalidRequest(
                "A PNG in observed has transparent pixels, and all of it was seen.",
                location="observed",
                fix="Send opaque PNGs; to /inpaint with its noise_std what was seen in part.",
            )
        if request.mask is not None:
            raise InvalidRequest(
                "known says which elements of the data were seen, and an operator sees them all.",
                location="known",
                fix="Leave out known; a dense operator leaves out the rows of what was not seen.",
            )
        return everything
    if request.mask is None and events.opaque is None and not request.whole:
        raise InvalidRequest(
            "Nothing says which values were observed.",
            location="known",
            expected="a mask, 1 or white where a value was observed, or transparent PNGs",
            fix="Send known; what was seen whole, with noise, goes to /denoise.",
        )
    known = everything
    if request.mask is not None:
        known = read_mask(request.mask, seen, count, "known")
    if events.opaque is not None:
        known = known & events.opaque
    empty = (~known.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise InvalidRequest(
            f"Nothing is observed of example {empty[0]}: its mask is all zero.",
            location="known",
            expected="at least one value observed",
            fix="Use /sample to draw without an observation.",
        )
    return known


def _check_sizes(
    values: Tensor, known: Tensor, noise: Tensor, operator: LinearOperator, space: DataSpace
) -> Tensor:
    """The noise, none where it is next to none; InvalidRequest of numbers beyond all measure.

    Arithmetic is of float32, whose squares end at 1e38: what is refused here gets an error, in
    place of an answer of infinities.
    """
    shift, scale = (part.broadcast_to(space.shape) for part in space.affine)
    if isinstance(operator, Mask):
        centre, spread = shift, scale
    else:
        matrix = operator.matrix(space.shape, values.device)
        weight = matrix.abs().amax(1)
        wrong = (weight > 0) & ((weight < _WEIGHTS[0]) | (weight > _WEIGHTS[1]))
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise InvalidRequest(
                f"The weights of number {place} that the operator sees are beyond measure.",
                location="operator",
                received=float(weight[place]),
                expected=f"a greatest weight of each from {_WEIGHTS[0]:g} to {_WEIGHTS[1]:g}",
                fix="Measure what is seen in other units.",
            )
        centre = (matrix @ shift.flatten()).reshape(values.shape[1:])
        spread = (matrix * scale.flatten()).norm(dim=1).reshape(values.shape[1:])
    if bool((noise > _NOISIEST * spread.clamp_min(1e-300)).any()):
        raise InvalidRequest(
            "noise_std is so much that nothing is seen through it.",
            location="noise_std",
            received=float(noise.max()),
            expected=f"at most {_NOISIEST:g} standard deviations of the data",
            fix="Leave out what says nothing, or check the units.",
        )
    noise = torch.where(noise < _FINEST * spread, 0.0, noise.double())
    far = (values.double() - centre).abs() > _FARTHEST * torch.maximum(spread, noise)
    far = (far & known).flatten(1)
    if bool(far.any()):
        example, place = far.nonzero()[0].tolist()
        raise InvalidRequest(
            f"observed has a number farther out than {_FARTHEST:g} standard deviations.",
            location="observed",
            index=example,
            received=float(values.flatten(1)[example, place]),
            expected=f"about {float(centre.flatten()[place]):g}, give or take some "
            f"{float(spread.flatten()[place]):g}",
            fix="Check the units.",
        )
    return noise


def _check_range(found: Seen, space: DataSpace) -> None:
    """Raise InvalidRequest where no data are seen so, of numbers that were seen exactly."""
    if space.levels is None:
        return
    exact = (found.noise == 0).expand_as(found.values).flatten(1)
    matrix = found.operator.matrix(space.shape, found.values.device)
    high = matrix.clamp_min(0).sum(1) * (space.levels - 1)
    low = matrix.clamp_max(0).sum(1) * (space.levels - 1)
    y, slack = found.values.flatten(1).double(), 1e-4 * (high - low)
    wrong = (exact & ((y < low - slack) | (y > high + slack))).nonzero()
    if len(wrong):
        example, place = wrong[0].tolist()
        raise InvalidRequest(
            f"No data in 0..{space.levels - 1} are seen so by this operator.",
            location="observed",
            index=example,
            received=float(y[example, place]),
            expected=f"number {place} from {float(low[place]):g} to {float(high[place]):g}",
            fix="Mend the numbers, or allow for noise with noise_std.",
        )
