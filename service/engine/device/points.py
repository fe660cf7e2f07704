"""Points: where the terms of bounds are evaluated, x_t ~ q(x_t | x_0).

nats by `likelihood.bound.evaluate`, of trajectories by `likelihood.iwae.evaluate`
"""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from diffusion.likelihood import iwae as trajectory
from diffusion.likelihood.bound import evaluate
from diffusion.model import DiffusionModel
from diffusion.prediction import Prediction
from service.engine.device.batches import TermGroup


@final
@dataclass(frozen=True)
class Points:
    """x_0 and x_t of the terms of a group, [G, *event].

    Attributes:
        x_0: model units.
        x_t: of trajectories in float64.
        before: x_{t-1} of trajectories, else None.
    """

    x_0: Tensor
    x_t: Tensor
    before: Tensor | None = None

    @classmethod
    def draw(cls, model: DiffusionModel, x_0: Tensor, group: TermGroup) -> "Points":
        """The points of a group whose data are `x_0`."""
        process = model.process
        if group.of_trajectories:
            before, x_t = trajectory.neighbours(process, x_0, group.t, group.noise)
            return cls(x_0, x_t, before)
        return cls(x_0, process.marginal(x_0, group.t).sample(group.noise))

    def evaluate(self, model: DiffusionModel, prediction: Prediction, group: TermGroup) -> Tensor:
        """The terms of the group, nats [G], from what the network says of x_t."""
        x_0, t, convention = self.x_0, group.t, group.convention
        if self.before is None:
            return evaluate(model, prediction, x_0, self.x_t, t, convention, group.s)
        return trajectory.evaluate(model, prediction, x_0, self.before, self.x_t, t, convention)
