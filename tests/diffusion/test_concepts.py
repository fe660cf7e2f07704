"""docs/concepts.md names what there is: every name of its table is in a file that it says."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\|.* \| (.*) \| (`diffusion/.*) \|$", PAGE, re.MULTILINE)


@pytest.mark.parametrize(("names", "files"), ROWS)
def test_every_name_is_where_it_is_said_to_be(names: str, files: str) -> None:
    code = "\n".join((ROOT / file).read_text() for file in re.findall(r"`([^`]+)`", files))
    for name in re.findall(r"`(\w+)[^`]*`", names):
        assert re.search(rf"(def|class) {name}\b|^\s*{name}: |\b{name} = ", code, re.MULTILINE), (
            name
        )


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 20
