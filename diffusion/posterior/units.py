"""Observations of data, in data units, as those of the model: x = c z + b.

    y = A x + noise n   <=>   (y - A b) / c = A z + (noise / c) n

where all elements have one scale c; where each is seen for itself, each has its own; else c goes
into the matrix, y - A b = (A c) z + noise n.
"""

import math

import torch
from torch import Tensor

from diffusion.observation import Observation
from diffusion.operators import Dense, LinearOperator, Mask
from diffusion.space import DataSpace


def in_model_units(
    space: DataSpace,
    operator: LinearOperator,
    y: Tensor,
    known: Tensor,
    noise: Tensor,
) -> tuple[Observation, Tensor]:
    """r over model units, and what a log-density of y in those gains in data units, nats [N].

    Args:
        space: of the data.
        operator: A; of bits a `Mask`.
        y: [N, *seen], data units.
        known: bool [N, *seen]; all where A is no `Mask`.
        noise: data units, broadcastable to `y`; of bits a single flip probability.

    Raises:
        ValueError: an operator that these data do not have, or a singular one seen without noise.
    """
    if space.kind == "bits":
        if not isinstance(operator, Mask):
            raise ValueError(
                "bits are seen one by one, each as it is or flipped: leave out `operator`"
            )
        return Observation.of_bits(y, known, float(noise)), torch.zeros(len(y)).double()
    shift, scale = (part.broadcast_to(space.shape)[None] for part in space.affine)
    if isinstance(operator, Mask):
        gained = -torch.where(known, scale.log(), 0.0).flatten(1).sum(1)
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
