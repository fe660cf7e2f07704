"""Held-out data beside an artefact: whole, few, and none of them anything else."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffusion.artefact import ArtefactError
from diffusion.heldout import FILE, MOST, choose, read, write
from diffusion.space import DataSpace

IMAGES = DataSpace(kind="image", shape=(3, 4, 5), shift=127.5, scale=128.0, levels=256)
POINTS = DataSpace(kind="vector", shape=(2,), scale=3.0)
BITS = DataSpace(kind="bits", shape=(7,))
DICE = torch.Generator().manual_seed(0)


def rows(space: DataSpace, count: int) -> Tensor:
    if space.kind == "vector":
        return torch.randn(count, *space.shape, generator=DICE)
    high = 2 if space.kind == "bits" else 256
    return torch.randint(high, (count, *space.shape), generator=DICE, dtype=torch.uint8)


@pytest.mark.parametrize("space", [IMAGES, POINTS, BITS], ids=lambda space: space.kind)
def test_data_come_back_as_they_went(tmp_path: Path, space: DataSpace) -> None:
    data = rows(space, 9)
    assert write(tmp_path, data, space) == tmp_path / FILE
    found = read(tmp_path, space)
    assert found.dtype == torch.float32
    assert torch.equal(found, data.float())
    assert (tmp_path / FILE).stat().st_size < 300 + data.nbytes
    assert ((tmp_path / FILE).stat().st_mode & 0o777) == 0o644


def test_a_folder_without_examples_has_none(tmp_path: Path) -> None:
    assert read(tmp_path, IMAGES).shape == (0, 3, 4, 5)


@pytest.mark.parametrize("count", [1, 31, 32, 33, 100, 1000])
def test_some_are_chosen_from_all_over_the_split(count: int) -> None:
    split = torch.arange(count)[:, None].expand(-1, 2)
    chosen = choose(split, POINTS)[:, 0]
    assert len(chosen) == min(count, MOST)
    assert chosen[0] == 0
    strides = chosen.diff()
    assert bool((strides == strides[:1]).all())
    assert len(strides) == 0 or int(chosen[-1]) >= count / 2


def test_large_data_are_fewer() -> None:
    space = DataSpace(kind="image", shape=(3, 100, 100), levels=256)
    assert len(choose(torch.zeros(50, 3, 100, 100, dtype=torch.uint8), space)) == 3
    large = DataSpace(kind="image", shape=(3, 400, 400), levels=256)
    assert len(choose(torch.zeros(2, 3, 400, 400, dtype=torch.uint8), large)) == 1


def test_what_is_no_data_is_neither_written_nor_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an example has shape"):
        write(tmp_path, rows(IMAGES, 2), POINTS)
    with pytest.raises(ValueError, match="at most 32 examples, came 33"):
        write(tmp_path, rows(BITS, 33), BITS)
    assert not (tmp_path / FILE).exists()
    spoilt: list[tuple[dict[str, Tensor], str]] = [
        ({"other": rows(BITS, 2)}, "data"),
        ({"data": rows(POINTS, 2)}, "an example has shape"),
        ({"data": 2 * torch.ones(2, 7)}, "bits are 0 or 1"),
        ({"data": rows(BITS, 40)}, "came 40"),
    ]
    for tensors, said in spoilt:
        save_file(tensors, tmp_path / FILE)
        with pytest.raises(ArtefactError, match=said) as error:
            read(tmp_path, BITS)
        assert "python -m training heldout" in str(error.value)
    (tmp_path / FILE).write_bytes(b"torn")
    with pytest.raises(ArtefactError, match="no examples"):
        read(tmp_path, BITS)
