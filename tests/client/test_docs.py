"""What the documents say of the client and the command holds."""

import re
import shlex
from pathlib import Path

import pytest

from client import NoneqError, errors
from client.command import offline
from client.command.main import __doc__ as help_text
from client.command.main import parser
from service.settings import Settings
from training.__main__ import parser as training_parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE + README, re.DOTALL)
COMMANDS = re.findall(r"^ *(?:# )?(noneq \w.*)$", PAGE + (help_text or ""), re.MULTILINE)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_of_python_runs(
    block: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Nothing but the address is another, and the model, which has fewer steps.
    here = block.replace("Client()", f"Client({url!r})").replace('"mnist"', '"grey"')
    here = re.sub(r"\b(steps|terms)=\d+", r"\1=4", here)
    exec(compile(here, "block", "exec"), {})


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one(line: str) -> None:
    verb, *words = shlex.split(re.split(r"\s{2,}|\s>\s|\s#\s", line)[0])[1:]
    if verb == "serve":
        assert Settings.from_command_line(words).models == Path("models")
    elif verb in offline.DOORS:
        training_parser().parse_args([*offline.DOORS[verb].words[1:], *words])
    else:
        parser().parse_args([verb, *words])


def test_every_exception_is_in_the_table() -> None:
    names = {name for name, one in vars(errors).items() if isinstance(one, type)}
    kinds = {name for name in names if issubclass(getattr(errors, name), NoneqError)}
    told = set(re.findall(r"`(\w+)`", PAGE))
    assert kinds <= told


def test_there_are_blocks_and_commands() -> None:
    assert len(BLOCKS) >= 3
    assert len(COMMANDS) >= 14
