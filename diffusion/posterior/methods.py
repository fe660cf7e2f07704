"""Methods: how a posterior is drawn from, as configurations; `diffusion.posterior` goes by them."""

from typing import Annotated, Literal, final

from pydantic import BaseModel, ConfigDict, Field

from diffusion.posterior.twist import Twist


class _Method(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


@final
class Product(_Method):
    """The 2015 paper's (Section 2.5): r_t = r for every t, one row a sample, no weights."""

    name: Literal["product"] = "product"


@final
class Resample(_Method):
    """RePaint: `jump` steps back, each stretch made `repeats` times."""

    name: Literal["repaint"] = "repaint"
    jump: int = Field(10, ge=1)
    repeats: int = Field(10, ge=1)


@final
class Matched(_Method):
    """The plain chain from the step whose noise is nearest to the observation's."""

    name: Literal["matched"] = "matched"


@final
class Twisted(_Method):
    """Particles that follow a twist.

    Attributes:
        particles: of a system.
        systems: "weighted", one for each sample, from which samples are drawn by what they count
            (`draw.weigh`), some more than once: few particles that lost a mode say so in Z, and
            counted alike with the rest they bias; "independent", the same, each drawn once,
            whose `weights` say what it counts; or "joint", one of all samples of a datum, which
            is cheaper, and whose samples share ancestors.
        twist: which r_t.
    """

    name: Literal["twisted"] = "twisted"
    particles: int = Field(8, ge=1)
    systems: Literal["independent", "weighted", "joint"] = "weighted"
    twist: Twist = Twist()

    def each(self, samples: int) -> int:
        """Systems of a datum, for so many samples of it."""
        return 1 if self.systems == "joint" else samples


@final
class Auto(_Method):
    """The matched start where all was seen with the noise of some step, else twisted."""

    name: Literal["auto"] = "auto"
    twisted: Twisted = Twisted()


#: A method's configuration, told apart by `name`.
Method = Annotated[Product | Resample | Matched | Twisted | Auto, Field(discriminator="name")]
#: One that says by itself what is done.
Settled = Product | Resample | Matched | Twisted
