"""Patches come from the split's own rows of the pictures, uniformly, and by seed."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from training.data import DataError, TexturesConfig, files, load
from training.data.textures import bands, patches, read

SIDE = 5


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two pictures whose greys tell the row, 100 high; the second one's begin at 100."""
    monkeypatch.setenv(files.VARIABLE, str(tmp_path))
    place = tmp_path / "textures"
    place.mkdir()
    rows = torch.arange(100, dtype=torch.uint8)[:, None]
    Image.fromarray(rows.expand(100, 40).contiguous().numpy()).save(place / "a.png")
    Image.fromarray((rows + 100).expand(100, 20).contiguous().numpy()).save(place / "b.png")
    (place / "readme.txt").write_text("no picture")
    return place


CONFIG = TexturesConfig(side=SIDE, held_out=(0.2, 0.3), train=400, valid=200, test=200)


@pytest.mark.usefixtures("folder")
def test_each_split_has_rows_of_its_own_and_all_of_them() -> None:
    dataset = load(CONFIG)
    for name, rows in (("train", range(50)), ("valid", range(50, 70)), ("test", range(70, 100))):
        found = set(dataset.split(name).flatten().tolist())
        assert found == {*rows, *(row + 100 for row in rows)}
    dataset.space.check(dataset.test.float())


@pytest.mark.usefixtures("folder")
def test_patches_are_whole_and_repeat_by_seed() -> None:
    one, two = load(CONFIG), load(CONFIG.model_copy(update={"train": 500}))
    step = one.train[:, 0, 1:].int() - one.train[:, 0, :-1].int()
    assert bool((step == 1).all())  # each row of a patch is the picture's next
    assert torch.equal(one.test, two.test)
    assert torch.equal(one.train, two.train[:400])
    assert not torch.equal(load(CONFIG.model_copy(update={"seed": 1})).test, one.test)
    assert one.checksum == two.checksum


def test_every_place_is_as_likely() -> None:
    region = torch.arange(12, dtype=torch.uint8).view(3, 4)
    found = patches([region], 2, torch.arange(6000), seed=3)[:, 0, 0, 0]
    count = torch.bincount(found.long(), minlength=7)[[0, 1, 2, 4, 5, 6]].double()
    assert int(count.sum()) == 6000
    deviation = (6000 * (1 / 6) * (5 / 6)) ** 0.5
    assert float(((count - 1000) / deviation).abs().max()) < 4


def test_bands_share_out_every_row() -> None:
    for height in (7, 512, 513):
        cut = bands(height, (0.1, 0.2))
        rows = [row for place in cut.values() for row in range(height)[place]]
        assert rows == list(range(height))


def test_some_pictures_by_name(folder: Path) -> None:
    dataset = load(CONFIG.model_copy(update={"pictures": ("b.png",)}))
    assert int(dataset.train.min()) == 100
    with pytest.raises(DataError, match=r"has no c\.png; it has a\.png, b\.png"):
        load(CONFIG.model_copy(update={"pictures": ("c.png",)}))
    assert torch.equal(read(folder / "a.png")[:, 0], torch.arange(100, dtype=torch.uint8))


def test_what_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"a\.png: valid has 4 rows and 40 columns.*needs 5"):
        load(CONFIG.model_copy(update={"held_out": (0.04, 0.3)}))
    (folder / "c.png").write_text("no picture")
    with pytest.raises(DataError, match=r"c\.png is no picture"):
        load(CONFIG)
    with pytest.raises(DataError, match=r"bark is no folder.*NONEQ_DATA"):
        load(CONFIG.model_copy(update={"folder": "bark"}))
    monkeypatch.delenv(files.VARIABLE)
    with pytest.raises(DataError, match=r"set NONEQ_DATA"):
        load(CONFIG)
    with pytest.raises(ValidationError, match="held_out"):
        TexturesConfig(held_out=(0.5, 0.5))


def test_sixteen_bits_are_refused(folder: Path) -> None:
    Image.new("I;16", (40, 40)).save(folder / "deep.png")
    with pytest.raises(DataError, match=r"deep\.png .* more than 8 bits"):
        load(CONFIG)
