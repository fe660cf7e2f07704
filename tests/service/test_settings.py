"""Where settings come from, and what is refused."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from service.settings import Settings, check_names


def test_defaults() -> None:
    settings = Settings()
    assert settings.port == 8000
    assert settings.batch_size == 0
    assert settings.models == Path("models")
    assert settings.accepted_keys == []


def test_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NONEQ_PORT", "9000")
    monkeypatch.setenv("NONEQ_API_KEYS", " one,two ,, ")
    monkeypatch.setenv("NONEQ_DEFAULT_MODEL", "")
    monkeypatch.setenv("NONEQ_LOG_LEVEL", "DEBUG")
    settings = Settings()
    assert settings.port == 9000
    assert settings.accepted_keys == ["one", "two"]
    assert settings.default_model is None
    assert settings.log_level == "debug"


def test_flags_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NONEQ_PORT", "9000")
    monkeypatch.setenv("NONEQ_BATCH_SIZE", "16")
    settings = Settings.from_command_line(["--port", "9001", "--models", "elsewhere"])
    assert (settings.port, settings.batch_size) == (9001, 16)
    assert settings.models == Path("elsewhere")


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Settings.from_command_line(["--help"])
    text = capsys.readouterr().out
    for name in Settings.model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_keys_do_not_show() -> None:
    assert "hush" not in repr(Settings(api_keys="hush"))  # type: ignore[arg-type]


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"batch_size": 64, "slots": 32}, "NONEQ_SLOTS to at least 64"),
        ({"max_body_bytes": 2**30 + 1}, "NONEQ_MAX_QUEUE_BYTES to at least 2147483650"),
        ({"deadline_seconds": -1}, "deadline_seconds"),
        ({"device": "tpu"}, "device"),
        ({"port": 70_000}, "port"),
        ({"term_share": 0}, "term_share"),
        ({"bach_size": 3}, "bach_size"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Settings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("NONEQ_MAX_QUEUECOST", "did you mean NONEQ_MAX_QUEUE_COST?"),
        ("NONEQ_BACH_SIZE", "did you mean NONEQ_BATCH_SIZE?"),
        ("noneq_prot", "did you mean NONEQ_PORT?"),
        ("NONEQ_ZZZ", "--help"),
    ],
)
def test_a_variable_that_is_no_setting_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "5")
    with pytest.raises(ValueError, match=f"{name}: .*{re.escape(meant)}"):
        Settings.from_command_line([])
    monkeypatch.setenv(name, "")  # says nothing
    Settings.from_command_line([])


def test_variables_of_others_are_left_alone() -> None:
    root = Path(__file__).parents[2]
    texts = [(root / name).read_text() for name in ("docker-compose.yml", "Makefile", "Dockerfile")]
    named = {name for text in texts for name in re.findall(r"NONEQ_[A-Z_]*[A-Z]", text)}
    kubernetes = {"NONEQ_SERVICE_HOST", "NONEQ_SERVICE_PORT_HTTP", "NONEQ_PORT_8000_TCP_ADDR"}
    check_names(named | kubernetes | {"NONEQ_URL", "NONEQ_API_KEY", "NONEQ_DATA", "PATH"})


@pytest.mark.parametrize("given", ["noneq", "/a b", "//", "https://x/noneq"])
def test_a_root_path_is_a_path(given: str) -> None:
    with pytest.raises(ValidationError, match="root_path"):
        Settings(root_path=given)


def test_devices() -> None:
    assert Settings(device="cpu").resolve_devices() == ["cpu"]
    assert Settings(device="auto").resolve_devices() in (["cpu"], ["cuda"])
    with pytest.raises(ValueError, match="PyTorch sees"):
        Settings(device="cuda:999").resolve_devices()
    assert Settings(device="cpu,cpu").resolve_devices() == ["cpu", "cpu"]
    for mixed in ("cpu,cuda", "cuda:0,cpu", "auto,cpu", "cuda,cuda"):
        with pytest.raises(ValidationError, match="device"):
            Settings(device=mixed)


def test_compose_passes_every_setting_on() -> None:
    """By the file .env; where it listens and the folder in the container are the container's."""
    text = (Path(__file__).parents[2] / "docker-compose.yml").read_text()
    service = yaml.safe_load(text)["services"]["noneq"]
    assert service["env_file"] == [{"path": ".env", "required": False}]
    fixed = {
        name: value for name, value in service["environment"].items() if "${" not in str(value)
    }
    assert fixed == {
        "NONEQ_HOST": "0.0.0.0",
        "NONEQ_PORT": 8000,
        "NONEQ_MODELS": "/models",
        "NONEQ_JOBS": "/jobs",
    }
    known = {f"NONEQ_{name.upper()}" for name in Settings.model_fields}
    assert set(service["environment"]) <= known
