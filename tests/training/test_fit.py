"""A fit killed and resumed is the fit unbroken; its loss is the bound; its artefact survives."""

import math
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import training
from diffusion import heldout
from diffusion.checkpoint import load as load_artefact
from diffusion.checkpoint import read_metadata, rewrite
from diffusion.likelihood.bound import bound, prior_part
from diffusion.noise import Stream, counter_noise
from training import data
from training.cli import main
from training.config import FitConfig
from training.fit import checkpoint as state
from training.fit.loop import Fit, RunOptions
from training.fit.objective import Objective
from training.fit.parallel import Ranks, pick_device

ALONE = Ranks(0, 1, torch.device("cpu"))


def fit(config: FitConfig, out: Path, **options: object) -> Fit:
    """A fit of the small configuration, not yet run."""
    return Fit(config, replace(RunOptions(out=out, save_every=5), **options), ALONE)  # type: ignore[arg-type]


def tensors(out: Path) -> dict[str, Tensor]:
    return state.read_tensors(out)


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_killed_and_resumed_equals_unbroken_bit_for_bit(small: FitConfig, tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert fit(small, whole).run()

    stopped = fit(small, broken)
    advance = stopped._advance

    def dies() -> tuple[float, dict[str, float]]:
        if stopped.step == 8:  # three steps after the last checkpoint
            raise RuntimeError("power cut")
        return advance()

    stopped._advance = dies  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="power cut"):
        stopped.run()
    assert state.read_state(broken).step == 5

    assert fit(small, broken).run()
    assert same(tensors(whole), tensors(broken))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_after_the_step_in_hand(
    small: FitConfig, tmp_path: Path, number: signal.Signals
) -> None:
    stopped = fit(small, tmp_path / "run")
    advance = stopped._advance

    def interrupted() -> tuple[float, dict[str, float]]:
        if stopped.step == 6:
            os.kill(os.getpid(), number)
        return advance()

    stopped._advance = interrupted  # type: ignore[method-assign]
    assert not stopped.run()
    assert state.read_state(tmp_path / "run").step == 7
    assert fit(small, tmp_path / "run").run()
    assert fit(small, tmp_path / "whole").run()
    assert same(tensors(tmp_path / "whole"), tensors(tmp_path / "run"))


def test_a_finished_fit_started_again_changes_nothing(small: FitConfig, tmp_path: Path) -> None:
    assert fit(small, tmp_path).run()
    before = tensors(tmp_path)
    assert fit(small, tmp_path).run()
    assert same(before, tensors(tmp_path))


def test_another_configuration_does_not_take_up_the_run(small: FitConfig, tmp_path: Path) -> None:
    fit(small, tmp_path, stop_at=2).run()
    with pytest.raises(state.CheckpointError, match=r"seed: 3 there, 4 here.*--restart"):
        fit(small.model_copy(update={"seed": 4}), tmp_path)


def test_a_version_that_knows_more_settings_goes_on(small: FitConfig, tmp_path: Path) -> None:
    fit(small, tmp_path, stop_at=2).run()
    found, held = state.read_state(tmp_path), tensors(tmp_path)
    older = {**found.config, "optimiser": {**found.config["optimiser"]}}
    assert older["optimiser"].pop("restarts") == []
    state.save(tmp_path, found.model_copy(update={"config": older}), held)
    assert fit(small, tmp_path).step == 2
    newer = {**found.config, "unheard-of": 1}
    state.save(tmp_path, found.model_copy(update={"config": newer}), held)
    with pytest.raises(state.CheckpointError, match="unheard-of: 1 there, None here"):
        fit(small, tmp_path)


def test_a_corrupt_checkpoint_is_named(small: FitConfig, tmp_path: Path) -> None:
    state.checkpoint_path(tmp_path).write_bytes(b"\x08" * 40)
    with pytest.raises(state.CheckpointError, match=r"checkpoint\.safetensors.*--restart"):
        fit(small, tmp_path)


def test_a_failed_write_leaves_the_old_checkpoint(
    small: FitConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = fit(small, tmp_path, stop_at=2)
    running.run()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        running.save()
    assert state.read_state(tmp_path).step == 2


def test_the_loss_is_the_bound(small: FitConfig, tmp_path: Path) -> None:
    model = fit(small, tmp_path).model
    x_0 = torch.randn(400, 2)
    objective = Objective(bound=1.0, simple=0.0, convention="density")
    total = torch.zeros(())
    with torch.no_grad():
        for t in range(1, model.T + 1):
            at = torch.full((len(x_0),), t)
            noise = counter_noise(0, torch.arange(len(x_0)), t, Stream.TRAINING)
            total += objective(model, x_0, at, torch.ones(len(x_0)), noise).value / model.T
    nats = -float(total) * model.space.dims + float(prior_part(model, x_0, "density").mean())
    found = bound(model, x_0, seed=0, convention="density").bound
    assert nats == pytest.approx(float(found.mean()), abs=5 * float(found.std()) / 20)


def test_the_simple_loss_of_a_network_that_says_nothing_is_one(
    small: FitConfig, tmp_path: Path
) -> None:
    keys = {"prediction": "eps", "variance": "lower"}
    network = small.network.model_copy(update={"outputs": 1, "zero_out": True})
    model = fit(small.model_copy(update={**keys, "network": network}), tmp_path).model
    objective = Objective(bound=0.0, simple=1.0, convention="density")
    rows = torch.arange(2000)
    noise = counter_noise(0, rows, 0, Stream.TRAINING)
    with torch.no_grad():  # eps_hat = 0, so the error is the mean square of eps
        t = 1 + rows % model.T
        loss = objective(model, torch.randn(2000, 2), t, torch.ones(2000), noise)
    assert float(loss.value) == pytest.approx(1.0, abs=0.1)


def test_a_fit_of_bits_comes_near_the_entropy(small: FitConfig, tmp_path: Path) -> None:
    keys = {
        **small.model_dump(),
        "data": {"kind": "heartbeat", "bits": 6, "period": 3, "train": 100, "test": 99},
        "process": {"kind": "binomial", "T": 20, "base_rate": 1 / 3},
        "network": {"kind": "mlp", "features": 6, "width": 32, "depth": 2, "embedding": 8},
        "prediction": "x_0",
        "variance": None,
        "steps": 250,
        "optimiser": {"lr": 0.01},
        "average": {"decay": 0.9},
        "watch": {"every": 1000, "data": 16},
    }
    running = fit(FitConfig.model_validate(keys), tmp_path, save_every=1000)
    model, x_0 = running.averaged, running.dataset.test
    before = float(bound(model, x_0, seed=0, convention="discretised").bound.mean())
    running.run()
    after = float(bound(model, x_0, seed=0, convention="discretised").bound.mean())
    assert before < -3.0
    assert -1.6 < after < -math.log(3) + 0.05


def test_ranks_share_a_batch_in_strata() -> None:
    rows = torch.arange(8)
    shares = [Ranks(rank, 2, torch.device("cpu")).share(rows) for rank in (0, 1)]
    assert [share.tolist() for share in shares] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    with pytest.raises(ValueError, match="does not divide"):
        Ranks(0, 3, torch.device("cpu")).check(8)


def test_two_ranks_fit_what_one_does(small: FitConfig, small_file: Path, tmp_path: Path) -> None:
    fit(small, tmp_path / "one", stop_at=4).run()
    words = ["--standalone", "--nproc-per-node", "2", "-m", "training", "fit", str(small_file)]
    words += ["--device", "cpu", "--threads", "1", "--stop-at", "4", "--out", str(tmp_path / "two")]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=Path(training.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert torch.allclose(value.double(), two[key].double(), rtol=1e-3, atol=1e-5), key


def test_device_auto_is_there_and_cuda_is_refused_where_it_is_not() -> None:
    assert pick_device("auto").type in ("cpu", "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cpu"):
            pick_device("cuda")


def test_the_command_line_from_fit_to_artefact(
    small: FitConfig, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, models = str(tmp_path / "run"), str(tmp_path / "models")
    assert main(["fit", str(small_file), "--out", out, "--device", "cpu"]) == 0
    assert main(["export", str(small_file), "--out", out, "--models", models]) == 0
    path = tmp_path / "models" / "small" / "model.safetensors"
    model, metadata = load_artefact(path)

    averaged = state.under("average", tensors(tmp_path / "run"))
    assert all(
        torch.equal(averaged[key], value) for key, value in model.network.state_dict().items()
    )
    assert metadata.training.steps == 12
    assert metadata.training.checksum == state.read_state(tmp_path / "run").checksum
    density, paper = metadata.evaluation
    assert (density.convention, paper.convention) == ("density", "paper")
    assert density.entropy is not None
    assert density.bound < -density.entropy
    assert (path.stat().st_mode & 0o777) == 0o644
    assert "| paper | test | 32 |" in path.with_name("README.md").read_text()
    assert path.with_name("samples.png").read_bytes()[:4] == b"\x89PNG"
    assert path.with_name("entropy.png").read_bytes()[:4] == b"\x89PNG"
    assert "![entropy of each reverse step]" in path.with_name("README.md").read_text()
    shown, test = heldout.read(path.parent, model.space), data.load(small.data).test
    assert all(bool((test == row).all(1).any()) for row in shown)
    path.with_name(heldout.FILE).unlink()
    assert main(["heldout", "small", "--models", models]) == 0
    assert torch.equal(heldout.read(path.parent, model.space), shown)

    assert main(["evaluate", "small", "--models", models, "--split", "valid", "--write"]) == 0
    splits = [e.split for e in read_metadata(path).evaluation]
    assert splits == ["test", "test", "valid"]
    several = ["evaluate", "small", "--models", models, "--rows", "16", "--trajectories", "3"]
    assert main([*several, "--write"]) == 0
    *others, found = read_metadata(path).evaluation
    assert [e.trajectories for e in others] == [None] * 3
    assert (found.trajectories, found.terms) == (3, None)
    assert found.gain is not None
    assert found.gain > 0
    assert "| all of 3 trajectories (gain" in path.with_name("README.md").read_text()
    capsys.readouterr()
    assert main([*several, "--terms", "6"]) == 2
    assert "leave out trajectories, or what" in capsys.readouterr().err
    assert main(["inspect", "small", "--models", models]) == 0
    assert "training.steps" in capsys.readouterr().out


def test_what_was_measured_is_measured_again_with_its_quantiles(
    small: FitConfig, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = str(tmp_path / "models")
    fit(small, tmp_path / "run").run()
    assert (
        main(["export", str(small_file), "--out", str(tmp_path / "run"), "--models", models]) == 0
    )
    path = tmp_path / "models" / "small" / "model.safetensors"
    model, metadata = load_artefact(path)
    density, paper = metadata.evaluation
    rows = model.space.to_model(data.load(small.data).test[:32])
    values = bound(model, rows, seed=1, convention="density").bound
    assert density.quantiles is not None
    assert density.quantiles[0] == pytest.approx(float(values.min()), rel=1e-5)
    assert density.quantiles[50] == pytest.approx(float(values.quantile(0.5)), rel=1e-5)
    assert density.quantiles[100] == pytest.approx(float(values.max()), rel=1e-5)

    old = tuple(e.model_copy(update={"quantiles": None}) for e in metadata.evaluation)
    rewrite(path, metadata.model_copy(update={"evaluation": old}))
    assert main(["quantiles", "small", "--models", models, "--batch", "7"]) == 0
    again, its_paper = read_metadata(path).evaluation
    assert again.quantiles == pytest.approx(density.quantiles, abs=1e-4)
    assert its_paper.quantiles == pytest.approx(paper.quantiles, abs=1e-4)
    assert again.bound == density.bound
    assert main(["quantiles", "small", "--models", models, "--data", "16"]) == 0
    part = read_metadata(path).evaluation[0]
    assert (part.quantiles_count, part.count, part.bound) == (16, 32, density.bound)
    assert part.quantiles is not None
    spread = model.space.to_model(data.load(small.data).test[::4])
    values = bound(model, spread, seed=1, convention="density").bound
    assert part.quantiles[0] == pytest.approx(float(values.min()), rel=1e-5)

    other = density.model_copy(update={"bound": density.bound + density.standard_error / 10})
    rewrite(path, metadata.model_copy(update={"evaluation": (other,)}))
    capsys.readouterr()
    assert main(["quantiles", "small", "--models", models]) == 2
    assert "evaluate it anew with --write" in capsys.readouterr().err
    assert read_metadata(path).evaluation == (other,)
    rewrite(path, metadata.model_copy(update={"evaluation": ()}))
    assert main(["quantiles", "small", "--models", models]) == 2
    assert "no bound of the whole chain" in capsys.readouterr().err


def test_mistakes_are_answered_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", "nothing"]) == 2
    assert "error: no configuration" in capsys.readouterr().err
    assert main(["fit", "bit-patterns"]) == 2
    assert "export bit-patterns" in capsys.readouterr().err
    assert main(["export", "swissroll", "--out", str(tmp_path)]) == 2
    assert "fit` first" in capsys.readouterr().err
    assert main(["inspect", "nothing", "--models", str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
