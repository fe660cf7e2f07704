"""Methods as they are asked for: those of `diffusion.posterior.methods`, or their name alone."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from diffusion.posterior.methods import Matched, Product, Twisted
from diffusion.posterior.twist import Covariance, Twist


class _Method(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TwistedMethod(_Method):
    """Particles that follow a twist: the posterior as they grow many, and its evidence.

    A step takes 1 + min(numbers seen, `products`) network evaluations a particle with the `full`
    covariance, 2 with the `diagonal`, 1 with the `independent` and of bits.
    """

    name: Literal["twisted"]
    particles: int = Field(8, ge=1, description="Of each system.")
    systems: Literal["independent", "weighted", "joint"] = Field(
        Twisted().systems,
        description="`weighted`: one system for each sample, from which the samples are drawn by "
        "the systems' evidence, some more than once, where that leaves more than half of them. "
        "`independent`: each is drawn once, and `weights` say what it counts. `joint`: one for all "
        "samples of a datum, which is cheaper, and whose samples share ancestors.",
    )
    covariance: Covariance = Field(
        Twist().covariance,
        description="Of x_0 given x_t: `full` by products with the network's Jacobian, `diagonal` "
        "by one, `independent` by none; `auto` is full up to `products` numbers seen, then "
        "independent.",
    )
    products: int = Field(
        8,
        ge=1,
        le=64,
        description="Most products of a step with `full`; where more numbers were seen, as many "
        "steps of conjugate gradients.",
    )

    def settled(self) -> Twisted:
        """As the library has it."""
        twist = Twist(covariance=self.covariance, products=self.products)
        return Twisted(particles=self.particles, systems=self.systems, twist=twist)


class AutoMethod(TwistedMethod):
    """`matched` where it holds, else `twisted` with these fields."""

    name: Literal["auto"]  # type: ignore[assignment]


class RepaintMethod(_Method):
    """RePaint, for comparison: `jump` steps back, each stretch made `repeats` times; biased.

    About `steps` * `repeats` network evaluations a sample.
    """

    name: Literal["repaint"]
    jump: int = Field(10, ge=1, le=1000)
    repeats: int = Field(10, ge=1, le=100)


class _ByName:
    """In the document: a method's fields, or its name alone."""

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        names = ["auto", "twisted", "matched", "product", "repaint"]
        return {"anyOf": [{"type": "string", "enum": names}, handler(schema)]}


def _named(value: object) -> object:
    return {"name": value} if isinstance(value, str) else value


MethodIn = Annotated[
    Annotated[
        AutoMethod | TwistedMethod | Matched | Product | RepaintMethod,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
    _ByName(),
]
