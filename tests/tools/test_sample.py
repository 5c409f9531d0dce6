from pathlib import Path

import forked_runs
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tools.sample import Sampler, main
from training.errors import UsageError

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """The folder of a short run on drawn digits."""
    folder = tmp_path_factory.mktemp("sample")
    classifier = [
        "train_cifar.py",
        "demo",
        "--dataset",
        "digits",
        "--model",
        "ultimus",
        "--optimizer",
        "adamw",
        "--lr",
        "0.01",
        "--bias_lr_factor",
        "1",
        "--head_lr_factor",
        "1",
        "--max_train_steps",
        "1",
        "--tracker",
        "none",
        "--output_dir",
        folder / "judge",
    ]
    command = [
        "train_cvae.py",
        "demo",
        "--tracker",
        "none",
        "--max_train_steps",
        "5",
        "--judge",
        folder / "judge",
        "--iw_samples",
        "0",
        "--evaluate_every",
        "0",
        "--spatial_latents",
        "7",
        "2",
        "--output_dir",
        folder / "run",
    ]
    for line in (classifier, command):
        forked_runs.run(*line, check=True)
    return folder / "run"


def test_it_draws_with_the_averaged_weights_of_the_run(run):
    sampler = Sampler(run)
    (checkpoint,) = (run / "checkpoints").glob("checkpoint-*")
    averaged = load_file(checkpoint / "ema.safetensors")
    for name, tensor in sampler.model.state_dict().items():
        assert torch.equal(tensor, averaged[name]), name
    assert sampler.class_names == [str(k) for k in range(10)]
    sevens = sampler("7", 5)
    assert sevens.shape == (5, 1, 28, 28) and sevens.min() >= 0 and sevens.max() <= 1
    assert torch.equal(sevens, sampler("7", 5)) and not torch.equal(sevens, sampler("7", 5, seed=1))
    assert not torch.equal(sevens, sampler("8", 5))
    cold = sampler("7", 5, temperature=0.0)
    torch.testing.assert_close(cold, cold[:1].expand_as(cold))


def test_the_command_writes_a_row_a_label(run, tmp_path, capsys):
    main(str(run), ("3", "1"), n=4, output=str(tmp_path / "some.png"))
    main(str(run), n=4, output=str(tmp_path / "all.png"))
    assert "8 pictures of 3, 1" in capsys.readouterr().out
    with Image.open(tmp_path / "some.png") as two_rows, Image.open(tmp_path / "all.png") as ten_rows:
        assert ten_rows.height > 3 * two_rows.height and two_rows.width > 200


def test_wrong_usage_is_one_line_and_exit_code_2(run, tmp_path, capsys):
    for arguments, named in (
        ((str(run), ("cat",)), "cat"),
        ((str(tmp_path),), str(tmp_path)),
        ((str(run.parent / "judge"),), "not of train_cvae"),
    ):
        with pytest.raises(SystemExit) as end:
            main(*arguments, output=str(tmp_path / "x.png"))
        assert end.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error:") and named in line
    with pytest.raises(UsageError):
        Sampler(tmp_path)
