"""The diffusion model: a process, a network and a data space, which give p(x_s | x_t)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, TypeVar, final, get_args

import torch
from torch import Tensor, nn
from typing_extensions import override

from diffusion.calibration import Calibration
from diffusion.distributions import Distribution
from diffusion.families import Family
from diffusion.networks import Network
from diffusion.observation import Observation
from diffusion.process import MEASURED, Output, Prediction, PredictionKind, Process, VarianceKind
from diffusion.profile import Profile
from diffusion.table import AnySpace

AnyPrediction = TypeVar("AnyPrediction", bound=Prediction)


@final
@dataclass(frozen=True)
class Times:
    """The inputs at B steps that do not depend on x_t.

    Attributes:
        t: int64 [B].
        condition: the network's conditions, [B, ...] each; just the time if it is not a
            `networks.base.Network`.
        of_x_0: `Output.affine` as float32 [B, 2], or as two numbers [] for one step; None if the
            prediction is not affine.
    """

    t: Tensor
    condition: tuple[Tensor, ...]
    of_x_0: Tensor | Sequence[Tensor] | None

    def rows(self, index: slice | Tensor, t: Tensor | None = None) -> "Times":
        """Select some of the steps."""
        assert self.of_x_0 is None or isinstance(self.of_x_0, Tensor)  # a single step has no rows
        return Times(
            self.t[index] if t is None else t,
            tuple(part[index] for part in self.condition),
            None if self.of_x_0 is None else self.of_x_0[index],
        )

    def each(self) -> "list[Times]":
        """Split into single steps, each usable for any number of rows."""
        known = zip(*(part.split(1) for part in self.condition), strict=True)
        flat = self.of_x_0.flatten().unbind() if isinstance(self.of_x_0, Tensor) else None
        pairs = [flat and flat[i : i + 2] for i in range(0, 2 * len(self.t), 2)]
        each = zip(self.t.split(1), known, pairs, strict=True)
        return [Times(t, condition, pair) for t, condition, pair in each]


@final
class DiffusionModel(nn.Module):
    """A diffusion probabilistic model.

    Args:
        process: the forward process.
        network: maps [B, *event] and a time [B] to [B, outputs * event[0], ...]; `clock` says
            which time.
        space: what an example is.
        prediction: what the network predicts.
        variance: the reverse kernel's variance; None for binary data and for "perturbation".
        profile: measurements of the model, if any; variances "optimal" and "contrast" need them.
        certified: the families of observations that the network was told of in training, and whose
            posteriors held-out data confirm.
        calibration: what was measured of them, and of families that failed.

    Raises:
        ValueError: the parts do not fit each other.
    """

    _low: Tensor | None
    _high: Tensor | None
    _table: Times | None

    def __init__(
        self,
        process: Process,
        network: nn.Module,
        space: AnySpace,
        prediction: PredictionKind,
        variance: VarianceKind | None,
        profile: Profile | None = None,
        certified: Sequence[Family] = (),
        calibration: Sequence[Calibration] = (),
    ) -> None:
        super().__init__()
        if prediction not in get_args(PredictionKind):
            raise ValueError(
                f"prediction is one of {get_args(PredictionKind)}, came {prediction!r}"
            )
        process.output(prediction, variance, profile).check(space)
        self.process, self.network, self.space = process, network, space
        self.prediction, self.variance, self.profile = prediction, variance, profile
        self.certified, self.calibration = tuple(certified), tuple(calibration)
        if variance in MEASURED and profile is None:
            raise ValueError(
                f"variance '{variance}' is read from a profile, and there is none: measure one "
                "with `python -m training profile`, or use 'lower'"
            )
        bounds = space.bounds
        self.register_buffer("_low", bounds[0].float() if bounds else None, persistent=False)
        self.register_buffer("_high", bounds[1].float() if bounds else None, persistent=False)
        self._table = None

    @property
    def T(self) -> int:
        """The number of steps."""
        return self.process.T

    @property
    def conditional(self) -> bool:
        """Whether the network can be told what was seen."""
        return bool(getattr(self.network, "conditional", False))

    def certified_for(self, observation: Observation) -> bool:
        """Return whether a certified family holds the observation, and no refuted one does."""
        held = any(family.holds(self.process, observation) for family in self.certified)
        return held and not any(each.refuted for each in self.calibrated_for(observation))

    def calibrated_for(
        self, observation: Observation, method: str = "learned"
    ) -> tuple[Calibration, ...]:
        """Return what was measured of families that hold the observation, the narrowest first."""
        of = [each for each in self.calibration if each.method == method]
        found = [each for each in of if each.family.holds(self.process, observation)]
        included = [sum(one.family.includes(other.family) for other in found) for one in found]
        order = sorted(range(len(found)), key=included.__getitem__)
        return tuple(found[i] for i in order)

    @property
    def event(self) -> tuple[int, ...]:
        """The shape of one example in model units."""
        return self.space.event

    @property
    def output(self) -> Output:
        """How to read the network's output."""
        return self.process.output(self.prediction, self.variance, self.profile)

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.process.beta.device

    def predict(
        self,
        x_t: Tensor,
        t: Tensor | Times,
        clip: bool = True,
        observation: Observation | None = None,
    ) -> Prediction:
        """Call the network at x_t; nothing else calls it.

        Args:
            x_t: [B, *event], model units.
            t: int64 [B], 1..T, or its `times`.
            clip: whether to apply `clip`; False in training, as clipped elements have no gradient.
            observation: what the network is told, in rows where it is (`Observation.told`); x_0hat
                is then E[x_0 | x_t, y], and y itself where y is exact.
        """
        at = t if isinstance(t, Times) else self.times(t)
        ours = isinstance(self.network, Network)
        time = at.condition if ours else at.condition[0].expand(len(x_t))
        told = None if observation is None else observation.inputs
        if observation is None or told is None:
            found = self.output.read(self.network(x_t, time), x_t, at.t, at.of_x_0)
            return (self.clip(found) if clip else found).settled(self.space)
        fused = self.output.fused(x_t, at.t, observation.telling)
        x, of_x_0 = (x_t, at.of_x_0) if fused is None else fused
        if observation.gaps is not None:
            x = x.masked_fill(observation.gaps, 0.0)  # x_t of what is not there says nothing
        output = self.network(torch.cat((x, told.to(x)), 1), time)
        found = self.output.read(output, x, at.t, of_x_0).at(x_t)
        found = (self.clip(found) if clip else found).settled(self.space)
        return found.pinned(observation.values, observation.closed)

    def left_out(self, x: Tensor) -> Observation | None:
        """Return what a network is told of unseen rows x [N, *shape], data units: their gaps.

        None if they have none.
        """
        gaps = self.space.gaps(x)
        if gaps is None:
            return None
        nothing = self.process.nothing_seen(self.event, len(x)).to_network()
        return nothing.without(gaps.to(self.device))

    def clip(self, prediction: AnyPrediction) -> AnyPrediction:
        """Clamp x_0hat and z to the data's range, or else to what the process allows."""
        return prediction.clipped(self._low, self._high)

    def times(self, t: Tensor) -> Times:
        """Return the inputs at t, int64 [B] or [1] for all rows, from the table if there is one."""
        if self._table is not None:
            return self._table.rows(t - 1, t)
        time = self._time(t)
        known = self.network.condition(time) if isinstance(self.network, Network) else (time,)
        return Times(t, known, self._of_x_0(t))

    def tabulate(self) -> None:
        """Compute `times` for every t and keep it until the model moves or its weights change."""
        self._table = None
        # Gradients of x_t pass through the table, so it must not hold inference tensors.
        with torch.inference_mode(False), torch.no_grad():
            self._table = self.times(torch.arange(1, self.T + 1, device=self.device))

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._table = None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _of_x_0(self, t: Tensor) -> Tensor | None:
        found = self.output.affine(t)
        return None if found is None else found.float()

    def reverse_kernel(self, x_t: Tensor, t: Tensor, s: Tensor) -> Distribution:
        """Return p(x_s | x_t), rows [B, *event]; s < t, int64 [B]."""
        return self.predict(x_t, t).kernel(s)

    def _time(self, t: Tensor) -> Tensor:
        """Return the network's time: t - 1 for clock "step", or the log SNR, float32 [B]."""
        snr = self.network.clock == "log_snr"
        return self.process.log_snr(t).float() if snr else (t - 1).float()
