"""Methods as they are asked for: those of `diffusion.posterior.methods`, or their name alone."""

from typing import Annotated, get_args

from pydantic import BeforeValidator, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from diffusion.posterior.methods import Method

_NAMES = [kind.model_fields["name"].default for kind in get_args(get_args(Method)[0])]


class _ByName:
    """In the document: a method's fields, or its name alone."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "enum": _NAMES}, handler(schema)]}


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


MethodIn = Annotated[Method, BeforeValidator(_named), _ByName()]
