"""docs/data.md holds: its commands, the sizes that it tells, and its block of Python."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from noneq.cli import local
from noneq.cli.main import parser as client_parser
from service.settings import Settings
from training import user_data as own
from training.cli import parser as training_parser

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^(?:\$ )?((?:noneq|python -m training) \w.*)$", PAGE, re.MULTILINE)
SIZES = re.findall(
    r"^\| (\w+) \| (?:U-Net|MLP), .* \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one(line: str) -> None:
    words = shlex.split(re.split(r"\s>\s", line)[0].removeprefix("python -m training"))
    verb, *rest = words[1:] if words[0] == "noneq" else words
    if verb == "serve":
        assert Settings.from_command_line(rest).models == Path("models")
    elif words[0] == "noneq" and verb not in local.PROGRAMS:
        client_parser().parse_args([verb, *rest])
    else:
        training_parser().parse_args([verb, *rest])


def test_the_sizes_are_those_that_are_configured(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    np.save(tmp_path / "numbers.npy", dice.normal(size=(60, 2)))
    np.save(tmp_path / "bits.npy", dice.integers(0, 2, (60, 3)))
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.new("RGB", (40, 32), (20 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    told = {what: tuple(map(int, sizes)) for what, *sizes in SIZES}
    for what, place in [("numbers", "numbers.npy"), ("bits", "bits.npy"), ("pictures", "pictures")]:
        keys, dataset = own.configure(tmp_path / place, None)
        steps = own.STEPS[dataset.space.kind]
        assert told[what] == (keys["process"]["T"], steps, keys["batch"])
        assert keys["steps"] < steps  # few rows are not gone through for ever


def test_the_moons_are_a_table_to_fit_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)[0], {})
    _, dataset = own.configure(Path("moons.csv"), None)
    assert (len(dataset.train), len(dataset.valid), len(dataset.test)) == (1700, 100, 200)


def test_there_are_commands_and_sizes() -> None:
    assert len(COMMANDS) >= 8
    assert len(SIZES) == 3
