"""Networks of other packages: found among what is installed, and nowhere else."""

import sys
from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import safe_open

from diffusion.checkpoint import ArtefactError, Metadata, load, save
from diffusion.networks import InstalledConfig, MLPConfig, NetworkConfig, build
from tests.diffusion.artefacts import described, document, small
from tests.packages import LINES, install

UNION: TypeAdapter[NetworkConfig] = TypeAdapter(NetworkConfig)
KEYS = {"kind": "lines", "features": 2, "slope": 0.25}


def lines() -> Metadata:
    like = small()
    return described(
        UNION.validate_python(KEYS), like.process, like.space, like.prediction, like.variance
    )


def test_it_is_found_built_and_written_with_its_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch)
    config = UNION.validate_python(KEYS)
    assert isinstance(config, InstalledConfig)
    assert UNION.validate_json(UNION.dump_json(config)) == config
    assert UNION.dump_python(config)["slope"] == 0.25
    assert build(config)(torch.ones(3, 2), torch.arange(3.0)).shape == (3, 2)


def test_an_artefact_of_it_survives_its_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch)
    metadata = lines()
    model = metadata.build().eval()
    path = tmp_path / "model.safetensors"
    save(path, model, metadata)
    again, read = load(path)
    assert read == metadata
    x_t, t = torch.randn(4, 2), torch.tensor([1, 2, 3, 12])
    assert torch.equal(model.predict(x_t, t).x_0, again.predict(x_t, t).x_0)
    with safe_open(path, framework="pt") as file:
        assert "Lines" not in file.metadata()["noneq"]  # a name and arguments, no code


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    with monkeypatch.context() as patch:
        install(tmp_path / "site", patch)
        metadata = lines()
        save(path, metadata.build(), metadata)
    with pytest.raises(ArtefactError, match=r"no network of kind 'lines'.*install the package"):
        load(path)


def test_an_artefact_names_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)
    metadata, path = lines(), tmp_path / "model.safetensors"
    save(path, metadata.build(), metadata)
    (tmp_path / "site" / "evil.py").write_text("raise SystemExit('it was imported')\n")
    for kind in ("evil", "evil:Config", "their_lines:LinesConfig", "../evil", ""):
        document(path, lambda d, kind=kind: d["network"].update(kind=kind))
        with pytest.raises(ArtefactError, match="no network of kind"):
            load(path)
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    ("code", "point", "reason"),
    [
        ("raise RuntimeError('half installed')", "lines = {package}:LinesConfig", "half installed"),
        (LINES, "lines = {package}:Other", "cannot be imported"),
        (LINES, "lines = {package}:Lines", "no subclass of"),
    ],
)
def test_packages_that_cannot_be_used_are_named(
    code: str, point: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, code, point=point)
    with pytest.raises(ValidationError, match=reason):
        UNION.validate_python(KEYS)


def test_two_of_a_kind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "one", monkeypatch)
    install(tmp_path / "two", monkeypatch, package="other_lines")
    with pytest.raises(ValidationError, match="2 packages bring"):
        UNION.validate_python(KEYS)


def test_what_is_built_in_cannot_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "site", monkeypatch, point="mlp = {package}:LinesConfig")
    config = UNION.validate_python({"kind": "mlp", "features": 2})
    assert isinstance(config, MLPConfig)


def test_wrong_arguments_teach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", monkeypatch)
    with pytest.raises(ValidationError, match="Extra inputs"):
        UNION.validate_python(KEYS | {"colour": 3})
    with pytest.raises(ValidationError, match="lines take vectors of 3"):
        described(
            UNION.validate_python(KEYS | {"features": 3}),
            small().process,
            small().space,
            "v",
            "lower",
        )
