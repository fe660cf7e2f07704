"""The extras of pyproject.toml fit each other and the pins; nothing is downloaded to see it."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements")

from packaging.requirements import Requirement  # noqa: E402
from packaging.utils import canonicalize_name  # noqa: E402

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(
        r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M
    )
}
#: Peers with dependencies of their own: the commands beside them say how to install them.
PEERS = {"azula", "sbi", "forestdiffusion", "hyperimpute", "miceforest", "pandas", "pyod"}
OURS = {"benchmarks", "diffusion", "noneq", "service", "training", "deploy"}


def named(texts: list[str], extras: set[str]) -> Iterator[Requirement]:
    """The requirements that hold here, by those extras."""
    for requirement in map(Requirement, texts):
        if not requirement.marker or any(
            requirement.marker.evaluate({"extra": extra}) for extra in extras or {""}
        ):
            yield requirement


def needed(extra: str) -> list[Requirement]:
    """All that an extra brings, as far as it is installed here."""
    found, todo = [], [*named(PROJECT["dependencies"], set()), *named(EXTRAS[extra], set())]
    seen: set[str] = set()
    while todo:
        requirement = todo.pop()
        if requirement.name == PROJECT["name"]:
            for other in requirement.extras:
                todo.extend(named(EXTRAS[other], set()))
            continue
        found.append(requirement)
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        try:
            below = metadata.requires(requirement.name) or []
        except metadata.PackageNotFoundError:
            continue  # a peer that this environment does without
        todo.extend(named(below, requirement.extras))
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_is_installed_at_the_pins(extra: str) -> None:
    for requirement in needed(extra):
        pin = PINS.get(canonicalize_name(requirement.name))
        assert pin is not None, f"constraints.txt does not pin {requirement}"
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} but {pin}"


@pytest.mark.parametrize("extra", EXTRAS)
def test_no_extra_brings_torchvision(extra: str) -> None:
    """Built for another torch than is there, it keeps diffusers from being imported."""
    names = {canonicalize_name(requirement.name) for requirement in needed(extra)}
    assert "torchvision" not in names | PINS.keys()
    assert "azula" not in names  # its metadata asks for torchvision: installed without dependencies


def imported(folder: str) -> set[str]:
    """The packages that a folder's modules import."""
    trees = [ast.parse(path.read_text()) for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    found = {name.partition(".")[0] for name in names} - OURS - sys.stdlib_module_names
    return {"scikit-learn" if name == "sklearn" else name for name in found}


def test_the_benchmarks_import_what_their_extra_names() -> None:
    names = {canonicalize_name(requirement.name) for requirement in needed("bench")}
    asked = {canonicalize_name(name) for name in imported("benchmarks")}
    assert asked - names <= PEERS
    assert (
        "pip install -c constraints.txt --no-deps azula"
        in (ROOT / "docs" / "posteriors.md").read_text()
    )


def test_diffusers_models_can_be_imported() -> None:
    diffusers = pytest.importorskip("diffusers")
    assert diffusers.UNet2DModel.__name__ == "UNet2DModel"  # here a torchvision that misfits fails
