"""The documentation as a site: `make docs`. Sphinx reads the files that a code host shows."""

from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

from noneq.version import __version__

HERE = Path(__file__).parent

project = "noneq"
root_doc = "README"
include_patterns = ["*.md", "docs/*.md", "docs/*.ipynb", "docs/site/*.md", "models/*/README.md"]
exclude_patterns = [".*", "build", "dist", "runs", "data", "docs/site/navigation.md"]

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "html_image"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # a notebook's outputs are in its file; a test runs it

default_role = "code"  # single backquotes, as docstrings have them
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpy's are long, and the text says what is meant
smartquotes = False

html_theme = "furo"
html_title = f"noneq {__version__}"
html_copy_source = False
html_show_copyright = False
html_extra_path = ["index.html"]  # to README.html


def navigate(_: Sphinx, page: str, source: list[str]) -> None:
    """Give the start page the navigation, which a code host could not show."""
    if page == root_doc:
        source[0] += (HERE / "navigation.md").read_text(encoding="utf-8")


def unmark(*about: Any) -> None:  # noqa: ANN401  (of what, and last its lines)
    """Take a docstring as it is written: `[N, *shape]` has no emphasis."""
    lines: list[str] = about[-1]
    lines[:] = [line.replace("*", "\\*") for line in lines]


def setup(app: Sphinx) -> None:
    """Do so while Sphinx reads."""
    app.connect("source-read", navigate)
    app.connect("autodoc-process-docstring", unmark, priority=900)  # after napoleon
