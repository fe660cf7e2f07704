"""Networks from other installed packages, found by entry point.

    [project.entry-points."noneq.networks"]
    my-kind = "my_package.my_module:MyConfig"        a subclass of InstalledConfig

An artefact holds only the kind's name and arguments, never code to import or run; the code comes
from the installed package.
"""

from abc import abstractmethod
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, SerializeAsAny

from diffusion.networks.base import Network, NetworkSettings

GROUP: Final = "noneq.networks"


class InstalledConfig(NetworkSettings):
    """The configuration of another package's network; subclasses add their arguments.

    Attributes:
        kind: the entry point's name; a subclass makes it a Literal with a default.
        outputs: 1 (mean part) or 2 (mean and variance part), each with the data's channels.
    """

    kind: str
    outputs: Literal[1, 2] = 1

    @abstractmethod
    def build(self) -> Network:
        """Build the network with fresh weights."""


def installed_kinds() -> list[str]:
    """List the kinds that installed packages provide, without importing their code."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find(kind: str) -> type[InstalledConfig]:
    """Import the configuration class that an installed package provides for a kind.

    Raises:
        ValueError: no package or several provide it, or it cannot be used.
    """
    points = list(entry_points(group=GROUP, name=kind))
    if len(points) != 1:
        brought = ", ".join(_package(point) for point in points)
        raise ValueError(
            f"{len(points)} packages bring a network of kind {kind!r} ({brought}): uninstall all "
            "but one"
            if points
            else f"no network of kind {kind!r}: it is not built in, and installed packages bring "
            f"{', '.join(installed_kinds()) or 'none'} (entry points of the group {GROUP!r}): "
            "install the package that brings it"
        )
    try:
        config = points[0].load()
    except Exception as error:  # another package's code may raise anything
        raise ValueError(
            f"the network of kind {kind!r} cannot be imported from {points[0].value} of "
            f"{_package(points[0])} ({type(error).__name__}: {error}): fix or reinstall it"
        ) from error
    if not (isinstance(config, type) and issubclass(config, InstalledConfig)):
        raise ValueError(
            f"{points[0].value} of {_package(points[0])} is no subclass of "
            "diffusion.networks.InstalledConfig: let the entry point name one"
        )
    return config


def _package(point: EntryPoint) -> str:
    return "an unknown package" if point.dist is None else point.dist.name


def _read(value: Any) -> Any:  # noqa: ANN401  (whatever a document holds)
    return (
        find(str(value.get("kind"))).model_validate(value) if isinstance(value, Mapping) else value
    )


#: Parsed as the installed package's own configuration, and written with all its arguments.
Installed = Annotated[SerializeAsAny[InstalledConfig], BeforeValidator(_read)]
