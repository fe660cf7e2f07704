"""Folders: everything in them is read, or counted among what was skipped, with the reason."""

import os
from pathlib import Path

import pytest
from PIL import Image

from noneq import FileError, reading
from noneq.reading import folders


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Pictures of four formats, in two folders, among what else a computer puts there."""
    folder = tmp_path / "photographs"
    (folder / "below").mkdir(parents=True)
    (folder / ".thumbnails").mkdir()
    for name in ("a.png", "b.GIF", "below/c.webp", "d.jpeg", ".thumbnails/a.png"):
        Image.new("RGB", (4, 4), "red").save(folder / name)
    for name in ("._a.png", ".DS_Store", "notes.txt", "Thumbs.db", "scores.csv", "README"):
        (folder / name).write_bytes(b"\0")
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "again").symlink_to(folder, target_is_directory=True)
    os.mkfifo(folder / "pipe.png")
    return folder


def test_one_rule_for_what_is_in_a_folder(photographs: Path) -> None:
    found = folders.scan(photographs)
    names = [path.relative_to(photographs).as_posix() for path in found.pictures]
    assert names == ["a.png", "b.GIF", "d.jpeg", "below/c.webp"]
    assert [path.name for path in found.tables] == ["scores.csv"]
    assert {(one.path.name, one.why) for one in found.skipped} == {
        ("._a.png", "hidden"),
        (".DS_Store", "hidden"),
        (".thumbnails", "hidden"),
        ("again", "a link to a folder"),
        ("gone.png", "no plain file"),
        ("pipe.png", "no plain file"),
        ("README", "neither a picture nor a table"),
        ("Thumbs.db", "neither a picture nor a table"),
        ("notes.txt", "neither a picture nor a table"),
    }
    told = folders.describe_skipped(found.skipped)
    assert told is not None
    assert told.startswith("9 files skipped: ")
    assert "3 hidden (.thumbnails, .DS_Store, ._a.png)" in told


def test_files_and_folders_are_found_by_name(photographs: Path) -> None:
    found = reading.find([str(photographs / "scores.csv"), str(photographs)])
    assert [path.name for path in found.files] == [
        "scores.csv",
        "a.png",
        "b.GIF",
        "d.jpeg",
        "c.webp",
    ]
    assert "1 a table beside pictures (scores.csv)" in str(folders.describe_skipped(found.skipped))
    with pytest.raises(FileError, match="nowhere: there is no such file"):
        reading.find([str(photographs / "nowhere")])


def test_a_folder_of_tables_or_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"holds no data.*it is empty"):
        reading.find([str(tmp_path)])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(FileError, match=r"holds no data.*1 file skipped: .*notes\.txt"):
        reading.find([str(tmp_path)])
    for name in ("b.tsv", "a.csv", "c.npz"):
        (tmp_path / name).write_text("1,2\n")
    found = reading.find([str(tmp_path)])
    assert [path.name for path in found.files] == ["a.csv", "b.tsv", "c.npz"]
    assert folders.describe_skipped([]) is None
