"""Points: where terms of bounds are evaluated, x_t ~ q(x_t | x_0), and what they come to.

A group's terms are of one kind: of steps by `diffusion.bound`, of whole trajectories, each with its
neighbour x_{t-1}, by `diffusion.trajectory`.
"""

from dataclasses import dataclass
from typing import Self, final

from torch import Tensor

from diffusion import trajectory
from diffusion.bound import evaluate
from diffusion.model import DiffusionModel
from diffusion.prediction import Prediction
from service.engine.batches import TermGroup


@final
@dataclass(frozen=True)
class Points:
    """Those of a group of G terms.

    Attributes:
        x_0: [G, *event].
        x_t: [G, *event]; of trajectories in float64.
        before: x_{t-1} of trajectories, likewise; None of others.
    """

    x_0: Tensor
    x_t: Tensor
    before: Tensor | None = None

    @classmethod
    def of(cls, model: DiffusionModel, x_0: Tensor, group: TermGroup) -> Self:
        """Drawn by the group's noise, of data [G, *event]."""
        if group.of_trajectories:
            before, x_t = trajectory.neighbours(model.process, x_0, group.t, group.noise)
            return cls(x_0, x_t, before)
        return cls(x_0, model.process.marginal(x_0, group.t).sample(group.noise))

    def nats(self, model: DiffusionModel, prediction: Prediction, group: TermGroup) -> Tensor:
        """The terms, [G]; the prediction is of x_t."""
        x_0, x_t, t, convention = self.x_0, self.x_t, group.t, group.convention
        if self.before is None:
            return evaluate(model, prediction, x_0, x_t, t, convention, group.s)
        return trajectory.evaluate(model, prediction, x_0, self.before, x_t, t, convention)
