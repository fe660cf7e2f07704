"""Reads what a bound is not of: elements that are given, and gaps of a table's rows."""

import torch
from torch import Tensor

from diffusion.model import DiffusionModel
from diffusion.observation import Observation
from service.catalogue import Served
from service.codecs.arrays import Events, read_mask
from service.errors import InvalidRequest
from service.schemas.requests import LoglikRequest


def read_known(request: LoglikRequest, served: Served, count: int) -> Tensor | None:
    """Read which elements are given, bool [N, *event]; None for a bound of whole examples."""
    if request.known is None:
        return None
    if not served.model.conditional:
        raise InvalidRequest(
            "This model's network cannot be told which elements are given.",
            location="known",
            fix="Leave out known, or use a model that is `conditional` (GET /models).",
        )
    for name in ("trajectories", "target_error"):
        if getattr(request, name) is not None:
            raise InvalidRequest(
                f"`{name}` is of whole examples, so it does not go with `known`.",
                location=name,
                received=getattr(request, name),
                fix=f"Leave out `{name}`; `terms` says how many network evaluations to make.",
            )
    known = read_mask(request.known, served.model.space, count, "known")
    whole = known.flatten(1).all(1).nonzero().flatten().tolist()
    if whole:
        raise InvalidRequest(
            f"Every element of example {whole[0]} is given, so nothing is left to bound.",
            location="known",
            index=whole[0],
            expected="a mask with a 0 where an element is not given",
            fix="Leave out known, or give fewer elements.",
        )
    return known


def read_gaps(events: Events, request: LoglikRequest, served: Served) -> Tensor:
    """Return which elements are not there, bool [N, *shape]; raise a Problem if some have to be."""
    if events.limits is not None:
        row = int(events.limits.rows.nonzero()[0])
        raise InvalidRequest(
            f"Row {row} has a limit in place of a number, and a bound is of values.",
            location="data",
            index=row,
            fix="Give the number, or leave the cell empty; /inpaint takes limits.",
        )
    gaps = torch.zeros(events.values.shape, dtype=torch.bool)
    if events.opaque is None or bool(events.opaque.all()):
        return gaps
    if served.model.space.table is None:
        raise InvalidRequest(
            "A PNG in data has transparent pixels, but a likelihood needs every pixel.",
            location="data",
            fix="Send opaque PNGs; /inpaint draws unknown pixels.",
        )
    gaps = ~events.opaque
    empty = gaps.all(1).nonzero().flatten().tolist()
    if empty:
        raise InvalidRequest(
            f"Row {empty[0]} has only gaps, so there is nothing to bound.",
            location="data",
            index=empty[0],
            expected="at least one value",
            fix="Leave the row out.",
        )
    row = int(gaps.any(1).nonzero()[0])
    for name in ("trajectories", "target_error"):
        if getattr(request, name) is not None:
            raise InvalidRequest(
                f"`{name}` is of whole rows, and row {row} has gaps.",
                location=name,
                received=getattr(request, name),
                fix=f"Leave out `{name}`; `terms` says how many network evaluations to make.",
            )
    if not served.model.conditional:
        raise InvalidRequest(
            f"This model's network cannot be told of gaps, and row {row} has some.",
            location="data",
            index=row,
            fix="Fill them, as /inpaint does, or use a model that is `conditional` (GET /models).",
        )
    return gaps


def told_of(
    model: DiffusionModel, x: Tensor, known: Tensor | None, gaps: Tensor
) -> Observation | None:
    """Return what the network is told of data x: which elements are given, and which are gaps."""
    if known is None:
        found = model.left_out(x)
        return None if found is None else found.each(Tensor.cpu)
    space = model.space
    x_0 = space.to_model(x)
    seen = model.process.saw(x_0, space.spread(known & ~gaps), torch.zeros_like(x_0)).to_network()
    return seen.without(space.spread(gaps)) if bool(gaps.any()) else seen
