"""Held-out data that a model ships with, in the forms that other data are answered in."""

from diffusion.heldout import FILE
from service.catalogue import Served
from service.codecs.arrays import plain
from service.codecs.contact_sheet import Strip, contact_sheet
from service.codecs.json import BINARY, JSON, PNG, to_binary, to_json
from service.errors import NotAcceptable
from service.schemas.responses import ExamplesAnswer

OFFERS = (JSON, PNG, BINARY)


def render(served: Served, count: int, form: str) -> bytes:
    """The first `count` of them, in one of OFFERS.

    Raises:
        NotAcceptable: a picture of none.
    """
    space, data = served.model.space, served.examples[:count]
    if form == PNG:
        if not len(data):
            raise NotAcceptable(
                f"The model {served.name} ships without examples, so there is nothing to draw.",
                received=PNG,
                expected=[JSON, BINARY],
                fix=f"`python -m training heldout {served.name}` writes {FILE} beside it.",
            )
        return contact_sheet(space, [Strip(data)])
    answer = ExamplesAnswer(model=served.name, data=plain(data, space))
    if form == BINARY:
        return to_binary(answer.model_dump(exclude={"data"}), {"data": data})
    return to_json(answer.model_dump())
