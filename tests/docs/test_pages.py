"""Every command and line of Python in the pages for beginners runs, and prints what they show."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from service.settings import Settings
from tests.docs import pages
from tests.docs.kept import KEPT, check, find
from tests.docs.stage import Stage
from tests.docs.standins import SHIPPED, STAND_INS, make_models
from tests.noneq.conftest import listening

PENGUINS = """name,kind,mass,bill
Pia,Adelie,3450,38.5
Ulf,Gentoo,,47.1
Ida,,5100,46.0
Bo,Adelie,5900,
"""
CLOSE = {"rel": 0.02, "abs": 0.02}  # of shown numbers: rounding, and another machine's kernels


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models")
    make_models(pages.ROOT / "models", found)
    return found


@pytest.fixture(scope="module")
def url(models: Path) -> Iterator[str]:
    with listening(Settings(models=models, device="cpu", batch_size=64)) as found:
        yield found


@pytest.fixture
def stage(tmp_path: Path, models: Path, url: str) -> Stage:
    """A page's folder, with the files that README and docs/client.md take for the reader's own."""
    for tool in ("bash", "curl", "make"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed, and the pages' commands are for it")
    made = Stage(tmp_path, models, url)
    grey = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8) * 4
    seen = np.where(np.arange(28) < 14, 255, 0) * np.ones((28, 1))
    Image.fromarray(np.stack([grey, seen.astype(np.uint8)], axis=-1)).save(tmp_path / "torn.png")
    np.save(tmp_path / "noisy.npy", grey[None, None].astype(np.float32) - 20)
    Image.fromarray(grey[::4, ::4]).save(tmp_path / "small.png")
    (tmp_path / "penguins.csv").write_text(PENGUINS)
    (tmp_path / "digits").mkdir()
    Image.fromarray(grey).save(tmp_path / "digits" / "one.png")
    return made


@pytest.mark.parametrize("page", pages.PAGES)
def test_every_block_runs_and_prints_what_is_shown(page: str, stage: Stage) -> None:
    wrong, last = [], ""
    for block in pages.read(page):
        try:
            if block.language in pages.SHOWN:
                compare(block.text, stage.printed, exact=ships(last))
            else:
                stage.run(block)
                last = block.text
        except Exception as error:
            wrong.append(f"{block.place}: {type(error).__name__}: {error}")
    assert not wrong, "\n\n".join(wrong)
    for figure, drawn in pages.figures(page):
        assert (pages.ROOT / page).with_name("figures").joinpath(Path(figure).name).is_file()
        assert (stage.folder / drawn).is_file()


def test_every_block_of_the_reference_runs(stage: Stage) -> None:
    pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")
    blocks = [one for one in pages.read("docs/api.md") if one.language in pages.RUN]
    assert {block.language for block in blocks} == {"sh", "python"}
    for block in blocks:
        stage.run(block)


@pytest.mark.parametrize("notebook", sorted((pages.ROOT / "docs").glob("*.ipynb")), ids=str)
def test_every_notebook_runs_and_shows_what_it_holds(
    notebook: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each output as text; a stand-in's is another, but is there."""
    monkeypatch.setenv("NONEQ_URL", url)
    monkeypatch.setenv("PYTHONPATH", str(pages.ROOT))
    shown = nbformat.read(notebook, as_version=4)
    found = nbformat.read(notebook, as_version=4)
    NotebookClient(found, resources={"metadata": {"path": str(tmp_path)}}, timeout=60).execute()
    for one, other in zip(shown.cells, found.cells, strict=True):
        if one.cell_type == "code":
            there, here = pages.outputs(one), pages.outputs(other)
            assert bool(there) == bool(here), one.source
            if "mnist" not in one.source and "models()" not in one.source:
                compare(there, here, exact=True)


def compare(shown: str, printed: str, *, exact: bool) -> None:
    """Raise where an answer is not the shown one; only its words where the model was another."""
    pairs = pages.same(shown, printed)
    assert pairs is not None, f"shown:\n{shown}\nprinted:\n{printed}"
    for one, other in pairs if exact else ():
        assert one == pytest.approx(other, **CLOSE), f"shown:\n{shown}\nprinted:\n{printed}"


def ships(text: str) -> bool:
    """Whether a block asks models that are here as they are shipped, and no other."""
    return any(name in text for name in SHIPPED) and not any(name in text for name in STAND_INS)


def test_whatever_is_kept_is_on_a_page() -> None:
    blocks = [block for page in pages.PAGES for block in pages.read(page)]
    commands = [one for block in blocks if block.language == "sh" for one in block.commands]
    found = {kept.beginning for one in commands if (kept := find(one)) is not None}
    assert found == {kept.beginning for kept in KEPT}


@pytest.mark.parametrize(
    ("shown", "printed", "told"),
    [
        ("a 1.5 b", "a  1.25\nb", [(1.5, 1.25)]),
        ('{"x":-7, ...}', '{"x":-7.01,"y":[1,2]}', [(-7.0, -7.01)]),
        ("a ... 3", "a b c 4", [(3.0, 4.0)]),
        ("a 1", "b 1", None),
        ("a", "a b", None),
        ("a 1", "a", None),
    ],
)
def test_shown_answers_are_compared(shown: str, printed: str, told: object) -> None:
    assert pages.same(shown, printed) == told


@pytest.mark.parametrize("language", ["", "yaml"])
def test_a_block_that_nobody_knows_is_refused(language: str, stage: Stage) -> None:
    with pytest.raises(AssertionError, match="no one knows"):
        stage.run(pages.Block("here", language, "echo\n"))


@pytest.mark.parametrize("command", ["false", "curl localhost:8000/nowhere", "cat absent | cat"])
def test_a_command_that_fails_is_told(command: str, stage: Stage) -> None:
    with pytest.raises(AssertionError):
        stage.run(pages.Block("here", "sh", command + "\n"))


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "pip install '.[nothing]'",
        "docker compose -f nothing.yml up",
        "noneq serve --nothing",
        "noneq train",
        "python -m training fit nothing",
    ],
)
def test_a_kept_command_that_could_not_run_is_told(command: str) -> None:
    kept = find(command)
    assert kept is not None
    with pytest.raises((AssertionError, subprocess.CalledProcessError, OSError, SystemExit)):
        check(kept, command)
