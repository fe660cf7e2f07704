"""Pages as they are written: their fenced blocks, and what a block says was printed.

```sh       commands, for bash
```python   lines, for the interpreter; a page's blocks are one session
```text     what the block before it printed (```json likewise); "..." stands for anything
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/tutorial.md", "docs/client.md", "docs/inference.md")
RUN = ("sh", "python")
SHOWN = ("text", "json")

_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


class Block(NamedTuple):
    """One fenced block.

    Attributes:
        place: page and line.
        language: behind its fence.
        text: what is in it.
    """

    place: str
    language: str
    text: str

    @property
    def fenced(self) -> str:
        """As it stands on the page."""
        return f"```{self.language}\n{self.text}```\n"

    @property
    def commands(self) -> list[str]:
        """Those of bash, one each; lines that go on are one."""
        found: list[str] = []
        for line in self.text.splitlines():
            if found and _goes_on(found[-1]):
                found[-1] += "\n" + line
            elif line.strip():
                found.append(line)
        return found


def _goes_on(command: str) -> bool:
    """Whether a backslash or a quote is still open."""
    said = re.sub(r"\s#.*", "", command)
    return said.endswith("\\") or said.count("'") % 2 == 1


def read(page: str) -> list[Block]:
    """A page's blocks, in their order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(f"{page}:{text.count(chr(10), 0, one.start()) + 1}", one[1], one[2])
        for one in _FENCE.finditer(text)
    ]


def outputs(cell: Any) -> str:  # noqa: ANN401  (a notebook's)
    """What a cell printed, and its value, as text."""
    found = [one.get("text") or one["data"]["text/plain"] for one in cell.outputs]
    return "\n".join(found)


def numbers(text: str) -> list[float]:
    """Every number in a text."""
    return [float(one) for one in _NUMBER.findall(text)]


def same(shown: str, printed: str) -> list[tuple[float, float]] | None:
    """The numbers of a shown answer with those that were printed; None where the words differ.

    Space between words does not count, and "..." stands for anything. What stands between two "..."
    is looked for from where the last was found, without going back: in time that is linear.
    """
    place, values = 0, list[float]()
    *parts, last = map(_pattern, shown.split("..."))
    for i, part in enumerate([*parts, last + r"\s*+\Z"]):
        look = re.compile(part)
        found = look.search(printed, place) if i else look.match(printed)
        if found is None:
            return None
        place, values = found.end(), [*values, *map(float, found.groups())]
    return list(zip(numbers(shown), values, strict=True))


def _pattern(shown: str) -> str:
    """Words and numbers in turn, however they are spaced; nothing is matched in two ways."""
    words = re.split(r"(" + _NUMBER.pattern + r")|\s+", shown)
    return "".join(
        r"\s*+" + (f"((?>{_NUMBER.pattern}))" if _NUMBER.fullmatch(word) else re.escape(word))
        for word in words
        if word
    )


def tables(page: str) -> Iterator[tuple[str, str]]:
    """Place and text of each line of a page's tables, but those that say no words."""
    for i, line in enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("|") and not re.fullmatch(r"[|\s:-]+", line):
            yield f"{page}:{i}", line


def figures(page: str) -> list[tuple[str, str]]:
    """Of a page's own pictures, `figures/PAGE-NAME.png`: path, and the file its commands wrote."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(rf"figures/{Path(page).stem}-(\w+\.png)", text)
    return [(f"figures/{Path(page).stem}-{name}", name) for name in found]
