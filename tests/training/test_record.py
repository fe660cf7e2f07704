"""A record is read as it was written, whole or not at all."""

from pathlib import Path

import pytest
import torch
from pydantic import BaseModel

from training import provenance


class Found(BaseModel):
    """Something that a command found."""

    bits: float


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "results" / "some.json"
    assert provenance.read(path) is None
    made = provenance.measure("some command", torch.device("cpu"), lambda: [Found(bits=0.1)])
    provenance.write(path, made)
    found = provenance.read(path)
    assert found is not None
    assert found == made.model_copy(update={"found": [{"bits": 0.1}]})
    assert found.machine is not None
    assert found.machine.startswith("cpu, ")
    assert found.seconds is not None
    assert {"python", "torch"} <= found.versions.keys()
    assert [file.name for file in path.parent.iterdir()] == ["some.json"]


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    for text in ('{"bits": 0.1}', "no json"):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"some\.json holds no record .*measure again"):
            provenance.read(path)
