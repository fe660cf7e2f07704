"""Reads a request's observation: y = A x_0 + noise, or bits that may be flipped; data units."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from diffusion.operators import AveragePooling, Blur, Dense, LinearOperator, Mask
from diffusion.space import DataSpace, Space
from service.codecs.arrays import Events, check_values, read_events, read_mask
from service.codecs.limits import Limits
from service.errors import InvalidRequest, TooExpensive, refusal
from service.schemas.conditions import ConditionalRequest, PosteriorRequest

_MOST_NUMBERS = 1024  # observed through an operator: each step solves for all of them together
_WEIGHTS = 1e-12, 1e12  # least and greatest weight, in absolute value, of an operator's row
_FARTHEST = 1e6  # an observation from the mean, in deviations of the data or the noise
_NOISIEST = 1e9  # noise, in standard deviations of the data
_FINEST = 1e-12  # likewise; less counts as no noise, because its square underflows in float32
_SCALED = 2.0  # of 255: an image with no larger value was probably scaled to 0..1 or -1..1


@dataclass(frozen=True)
class Observed:
    """The observations of N examples.

    Attributes:
        values: y, [N, *seen], data units; 0 where unknown.
        known: bool [N, *seen].
        noise: standard deviations in data units, [N, *seen] or one for all, or the flip
            probability of bits; 0: observed exactly.
        operator: A.
        limits: of a table's numbers that have no value; None for none.
    """

    values: Tensor
    known: Tensor
    noise: Tensor
    operator: LinearOperator
    limits: Limits | None = None

    @property
    def nothing(self) -> bool:
        """Whether r = 1."""
        return not bool(self.known.any())

    @property
    def exact(self) -> Tensor:
        """Which elements of x_0 are known exactly, bool [N, *seen]; only for a `Mask`."""
        return self.known & (self.noise == 0) & isinstance(self.operator, Mask)

    def warning(self, space: Space, example: int) -> str | None:
        """Return a warning if an example's values are probably in the wrong units."""
        if space.levels is None or space.levels < 16 or isinstance(self.operator, Dense):
            return None
        top, greatest = space.levels - 1, float(self.values[example].abs().max())
        if not 0 < greatest <= _SCALED:
            return None
        return (
            f"all observed values are within {_SCALED:g} of 0, but the model's data are 0 to {top}:"
            f" if your images are 0 to 1 or -1 to 1, scale them, and their noise, to 0..{top}"
        )

    @property
    def picture(self) -> tuple[Tensor, Tensor] | None:
        """Return y and the known mask, [N, *event], if y can be drawn as data; else None."""
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


def read_observed(request: ConditionalRequest, space: Space) -> Observed:
    """Read a request's observation; raise InvalidRequest if it is not possible."""
    if request.observed is None:
        return _nothing(request, space)
    operator = request.through
    seen = space if isinstance(operator, Mask) else _seen_space(operator, space)
    noise = _noise(request, space)
    events = read_events(request.observed, seen, "observed", space.dtype)
    noise = _fit_noise(noise, seen, len(events.values), request)
    known = _known(request, seen, events)
    values = torch.where(known, events.values, 0.0)  # unknown values may be anything
    if not bool(torch.isfinite(values).all()):
        raise InvalidRequest(
            "observed holds NaN or an infinity, or a number beyond float32.",
            location="observed",
            expected="finite numbers",
            fix="Replace it, or mark it as unknown in `known`.",
        )
    if not space.flips:
        noise = _check_sizes(values, known, noise, operator, space)
    found = Observed(values, known, noise, operator, events.limits)
    if isinstance(operator, Mask):
        are_data = known if space.flips else found.exact
        anything = space.to_data(torch.zeros(1, *space.event))
        check_values(torch.where(are_data, values, anything), space, "observed")
    else:
        _check_range(found, space)
    return found


def _nothing(request: ConditionalRequest, space: Space) -> Observed:
    """Return an empty observation, r = 1, if the request has another factor."""
    if not isinstance(request, PosteriorRequest) or (
        request.label is None and request.expert is None
    ):
        raise InvalidRequest(
            "observed: Field required",
            location="observed",
            expected="an observation, a label, or an expert",
            fix="Use /sample to draw without an observation.",
        )
    for name in ("known", "operator", "noise_std", "flip_probability"):
        if name in request.model_fields_set and getattr(request, name) is not None:
            raise InvalidRequest(
                f"{name} is given, but no observation.",
                location=name,
                fix=f"Send observed, or leave out {name}.",
            )
    empty = torch.zeros(request.count, *space.shape)
    return Observed(empty, torch.zeros_like(empty, dtype=torch.bool), torch.tensor(0.0), Mask())


def _seen_space(operator: LinearOperator, space: Space) -> DataSpace:
    """Return the data space of observations through an operator."""
    if space.table is not None:
        raise InvalidRequest(
            "The cells of a table are observed one by one.",
            location="operator",
            received=operator.model_dump(include={"kind"}),
            fix="Leave out operator; a cell that was not observed is null.",
        )
    if space.flips:
        raise InvalidRequest(
            "Bits are observed one by one, each as it is or flipped.",
            location="operator",
            received=operator.model_dump(include={"kind"}),
            fix="Leave out operator; mark the observed bits in `known`.",
        )
    try:
        shape = operator.seen(space.shape)
    except ValueError as error:
        raise refusal(error, "operator") from None
    if math.prod(shape) > _MOST_NUMBERS:
        raise TooExpensive(
            "The operator maps an example to more numbers than can be solved for together.",
            location="operator",
            received=math.prod(shape),
            expected=f"at most {_MOST_NUMBERS}",
            fix="Use coarser blocks or fewer rows; a mask may keep everything.",
        )
    return DataSpace(kind="image" if len(shape) == 3 else "vector", shape=shape)


def _noise(request: ConditionalRequest, space: Space) -> object:
    """Return the request's noise, checking that its kind fits the data."""
    mine = space.noise_name
    of = {"noise_std": "bits", "flip_probability": "real data"}  # data without such noise
    (other,) = of.keys() - {mine}
    if getattr(request, other) is not None:
        raise InvalidRequest(
            f"{other} has no meaning for {of[other]}.",
            location=other,
            expected=mine,
            fix=f"Send {mine} instead.",
        )
    return getattr(request, mine)


def _fit_noise(noise: object, seen: Space, count: int, request: ConditionalRequest) -> Tensor:
    """Convert the noise to one number for all, or [N, *seen]."""
    name = seen.noise_name
    if isinstance(noise, list | Tensor):
        found = _array(noise, seen, count)
    else:
        found = torch.tensor(float(noise or 0.0), dtype=torch.float64)  # type: ignore[arg-type]
    if not bool((found >= 0).all() & found.isfinite().all()):
        raise InvalidRequest(
            f"{name} holds a negative or infinite number, or NaN.",
            location=name,
            expected="finite numbers of at least 0",
        )
    if request.noisy and not bool((found > 0).all()):
        raise InvalidRequest(
            "/denoise needs the noise of the observation.",
            location=name,
            received=None if noise is None or isinstance(noise, list | Tensor) else noise,
            expected="numbers above 0",
            fix=f"Send {name}; for exact observations use /inpaint.",
        )
    return found


def _array(noise: "list[object] | Tensor", seen: Space, count: int) -> Tensor:
    """Convert an array for all data, or one each, to [N, *seen]."""
    depth = noise.ndim if isinstance(noise, Tensor) else _depth(noise)
    grey = len(seen.shape) == 3 and seen.shape[0] == 1
    if depth == len(seen.shape) or (grey and depth == 2):
        noise = noise[None] if isinstance(noise, Tensor) else [noise]
    found = read_events(noise, seen, "noise_std").values
    if len(found) not in (1, count):
        raise InvalidRequest(
            f"There are {len(found)} arrays of noise for {count} observations.",
            location="noise_std",
            fix="Send one for all, or one each.",
        )
    return found.expand(count, *seen.shape)


def _depth(value: object) -> int:
    """Return the depth of nested lists."""
    return 1 + _depth(value[0]) if isinstance(value, list) and value else 0


def _known(request: ConditionalRequest, seen: Space, events: Events) -> Tensor:
    count = len(events.values)
    everything = torch.ones(count, *seen.shape, dtype=torch.bool)
    masked = isinstance(request.through, Mask)
    if request.noisy or not masked:
        if events.opaque is not None:
            raise InvalidRequest(
                "A PNG in observed has transparent pixels, but here everything is observed.",
                location="observed",
                fix="Send opaque PNGs; for partial observations use /inpaint, with noise_std.",
            )
        if request.mask is not None:
            raise InvalidRequest(
                "known does not go with an operator, which maps whole examples.",
                location="known",
                fix="Leave out known; a dense operator may leave out rows instead.",
            )
        return everything
    if request.mask is None and events.opaque is None and not request.whole:
        raise InvalidRequest(
            "The request does not say which values were observed.",
            location="known",
            expected="a mask, 1 or white where a value was observed, or transparent PNGs",
            fix="Send known; for complete observations with noise use /denoise.",
        )
    known = everything
    if request.mask is not None:
        known = read_mask(request.mask, seen, count, "known")
    if events.opaque is not None:
        known = known & events.opaque
    something = known.flatten(1).any(1)
    if events.limits is not None:
        something |= events.limits.rows
    empty = (~something).nonzero().flatten().tolist()
    if empty:
        raise InvalidRequest(
            f"Nothing is observed of example {empty[0]}: its mask is all zero.",
            location="known",
            expected="at least one value observed",
            fix="Use /sample to draw without an observation.",
        )
    return known


def _check_sizes(
    values: Tensor, known: Tensor, noise: Tensor, operator: LinearOperator, space: Space
) -> Tensor:
    """Check the sizes of values, weights and noise; return the noise, 0 where negligible.

    Raises:
        InvalidRequest: values are so extreme that float32 arithmetic would overflow.
    """
    shift, scale = (part.broadcast_to(space.shape) for part in space.extent)
    if isinstance(operator, Mask):
        centre, spread = shift, scale
    else:
        matrix = operator.matrix(space.shape, values.device)
        weight = matrix.abs().amax(1)
        wrong = (weight > 0) & ((weight < _WEIGHTS[0]) | (weight > _WEIGHTS[1]))
        if bool(wrong.any()):
            place = int(wrong.nonzero()[0])
            raise InvalidRequest(
                f"The weights of the operator's row {place} are too small or too large.",
                location="operator",
                received=float(weight[place]),
                expected=f"a greatest weight of each row from {_WEIGHTS[0]:g} to {_WEIGHTS[1]:g}",
                fix="Give the row and what it measures in other units.",
            )
        centre = (matrix @ shift.flatten()).reshape(values.shape[1:])
        spread = (matrix * scale.flatten()).norm(dim=1).reshape(values.shape[1:])
    if bool((noise > _NOISIEST * spread.clamp_min(1e-300)).any()):
        raise InvalidRequest(
            "noise_std is so large that the observation says nothing.",
            location="noise_std",
            received=float(noise.max()),
            expected=f"at most {_NOISIEST:g} standard deviations of the data",
            fix="Leave out such observations, or check the units.",
        )
    noise = torch.where(noise < _FINEST * spread, 0.0, noise.double())
    far = (values.double() - centre).abs() > _FARTHEST * torch.maximum(spread, noise)
    far = (far & known).flatten(1)
    if bool(far.any()):
        example, place = far.nonzero()[0].tolist()
        raise InvalidRequest(
            f"observed has a number more than {_FARTHEST:g} standard deviations away.",
            location="observed",
            index=example,
            received=float(values.flatten(1)[example, place]),
            expected=f"about {float(centre.flatten()[place]):g}, plus or minus a few times "
            f"{float(spread.flatten()[place]):g}",
            fix="Check the units.",
        )
    return noise


def _check_range(found: Observed, space: Space) -> None:
    """Raise InvalidRequest if no data in range give an exact observation."""
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
            f"No data in 0..{space.levels - 1} give this value through this operator.",
            location="observed",
            index=example,
            received=float(y[example, place]),
            expected=f"value {place} from {float(low[place]):g} to {float(high[place]):g}",
            fix="Correct the values, or allow for noise with noise_std.",
        )
