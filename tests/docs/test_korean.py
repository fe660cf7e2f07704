"""README.ko.md says what README.md says: the same commands, figures, links, names and numbers."""

import re

from tests.docs import pages

ENGLISH, KOREAN = "README.md", "README.ko.md"
_SCALES = {" million": 1e6, "만": 1e4}


def values(line: str) -> list[float]:
    """The numbers of a line in order of size, 1.7 million or 170만 alike."""
    found = re.findall(r"(-?[\d,]*\.?\d+)( million|만)?", line)
    return sorted(round(float(n.replace(",", "")) * _SCALES.get(s, 1.0), 6) for n, s in found)


def prose(page: str) -> str:
    """A page without its blocks; a line's end is a space."""
    text = (pages.ROOT / page).read_text(encoding="utf-8")
    for block in pages.read(page):
        text = text.replace(block.fenced, "")
    return " ".join(text.split())


def test_blocks_are_the_same() -> None:
    there, here = ([block[1:] for block in pages.read(page)] for page in (ENGLISH, KOREAN))
    assert there == here


def test_tables_have_the_same_numbers() -> None:
    there, here = (list(pages.tables(page)) for page in (ENGLISH, KOREAN))
    assert len(there) == len(here) > 20
    for (_, one), (place, other) in zip(there, here, strict=True):
        assert values(one) == values(other), place


def test_names_links_and_sections_are_the_same() -> None:
    one, other = prose(ENGLISH), prose(KOREAN)
    code = r"`[^`]+`"
    assert sorted(set(re.findall(code, one))) == sorted(set(re.findall(code, other)))
    links = r"\]\(([^)]+)\)|<(http[^>]+)>"
    assert re.findall(links, one)[1:] == re.findall(links, other)[1:]  # the first are each other's
    assert f"]({KOREAN})" in one
    assert f"]({ENGLISH})" in other
    assert one.count(" ## ") == other.count(" ## ")


def test_a_million_is_read_in_both() -> None:
    assert values("1.7 million of 2,000") == values("2,000 가운데 170만") == [2000.0, 1.7e6]
    assert values("± .003 and -2.4") == [-2.4, 0.003]
