"""Write into a page what its commands print, and draw its pictures, by the models themselves.

    noneq serve --models models            (with models/shapes, made as the tutorial says)
    python -m tests.docs.write docs/tutorial.md

A shown answer with "..." in it is somebody's choice of lines: it is compared and left. A picture
`figures/PAGE-NAME.png` is what the page's commands wrote to NAME.png.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

from noneq.environment import URL
from tests.docs import pages
from tests.docs.stage import Stage


def write(page: str, stage: Stage) -> None:
    """Run the page's blocks in their order, and write the page anew."""
    path = pages.ROOT / page
    text = path.read_text(encoding="utf-8")
    for block in pages.read(page):
        print(block.place, block.text.partition("\n")[0])
        if block.language not in pages.SHOWN:
            stage.run(block)
        elif "..." not in block.text:
            head, tail = text.split(block.fenced, 1)
            text = head + block._replace(text=stage.printed.rstrip() + "\n").fenced + tail
        elif pages.same(block.text, stage.printed) is None:
            print(f"{block.place} shows what was not printed:\n{stage.printed}")
    path.write_text(text, encoding="utf-8")
    for figure, drawn in pages.figures(page):
        shutil.copy(stage.folder / drawn, path.parent / figure)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", help="say docs/tutorial.md")
    parser.add_argument("--url", default=URL, help="of the service")
    parser.add_argument("--models", type=Path, default=pages.ROOT / "models")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(given.page, Stage(Path(folder), given.models.resolve(), given.url))


if __name__ == "__main__":
    main()
