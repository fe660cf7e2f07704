"""What the documents say of the client and the command holds; tests/docs runs what they show."""

import re
import shlex
from pathlib import Path

import pytest

from noneq import NoneqError, errors
from noneq.cli import local
from noneq.cli.main import __doc__ as help_text
from noneq.cli.main import parser
from service.settings import Settings
from training.cli import parser as training_parser

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "client.md").read_text()
LINES = re.findall(r"^ *(?:# )?(noneq \w.*)$", PAGE + (help_text or ""), re.MULTILINE)
COMMANDS = [command for line in LINES for command in line.split(" | ")]


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_one(line: str) -> None:
    verb, *words = shlex.split(re.split(r"\s{2,}|\s>\s|\s#\s", line)[0])[1:]
    if verb == "serve":
        assert Settings.from_command_line(words).models == Path("models")
    elif verb in local.PROGRAMS:
        training_parser().parse_args([*local.PROGRAMS[verb].words[1:], *words])
    else:
        parser().parse_args([verb, *words])


def test_every_exception_is_in_the_table() -> None:
    names = {name for name, one in vars(errors).items() if isinstance(one, type)}
    kinds = {name for name in names if issubclass(getattr(errors, name), NoneqError)}
    told = set(re.findall(r"`(\w+)`", PAGE))
    assert kinds <= told


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 14
