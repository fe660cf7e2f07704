"""A package as pip installs it: a module, and its entry points beside it."""

import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs" / "networks.md"
#: Networks of somebody's own, in their own PyTorch: the very ones that the page shows. The second
#: may be told what was seen.
LINES, TILTS = (part.partition("```")[0] for part in DOCS.read_text().split("```python\n")[1:])


def install(
    folder: Path,
    patch: pytest.MonkeyPatch,
    code: str = LINES,
    *,
    package: str = "their_lines",
    point: str = "lines = {package}:LinesConfig",
) -> None:
    """Put a package on the path, as if pip had."""
    folder.mkdir(exist_ok=True)
    (folder / f"{package}.py").write_text(code)
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    named = point.format(package=package)
    (info / "entry_points.txt").write_text(f"[noneq.networks]\n{named}\n")
    patch.syspath_prepend(str(folder))
    patch.delitem(sys.modules, package, raising=False)
