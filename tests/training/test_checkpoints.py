import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from data.seeding import seed_micro_batch
from training.checkpoints import (
    best_checkpoint,
    check_files,
    damage,
    find_checkpoint,
    latest_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_weights,
    mean_weights,
    read_state,
    save_checkpoint,
)
from training.ema import EMA
from training.errors import UsageError


@pytest.fixture
def parts(fresh_accelerate):
    accelerator = Accelerator(cpu=True)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    ema = EMA(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return accelerator, *accelerator.prepare(model, optimizer), ema


def train(parts, n: int, step: int = 0) -> list[float]:
    """The losses of `n` updates from `step` on, with their dropout and their data."""
    accelerator, model, optimizer, ema = parts
    losses = []
    for i in range(step, step + n):
        seed_micro_batch(0, i, 0)
        loss = model(torch.randn(8, 3)).square().mean()
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)
        losses.append(loss.item())
    return losses


def save(parts, run_dir, step, **options):
    accelerator, model, _, ema = parts
    state = {"step": step, **options.pop("state", {})}
    return save_checkpoint(accelerator, model, run_dir, state, ema=ema, **options)


def test_what_is_loaded_trains_on_bit_for_bit(parts, tmp_path):
    train(parts, 3)
    checkpoint = save(parts, tmp_path, 3, files={"note.txt": "città"})
    uninterrupted = train(parts, 4, step=3)
    weights = {k: v.clone() for k, v in parts[1].state_dict().items()}
    averaged = {k: v.clone() for k, v in parts[3].state_dict().items()}
    train(parts, 2)
    torch.manual_seed(99)
    state = load_checkpoint(parts[0], parts[1], checkpoint, parts[3])
    assert state == {"step": 3}
    assert train(parts, 4, step=3) == uninterrupted
    for name, tensor in parts[1].state_dict().items():
        assert torch.equal(tensor, weights[name])
    for name, tensor in parts[3].state_dict().items():
        assert torch.equal(tensor, averaged[name])
    assert (checkpoint / "note.txt").read_text(encoding="utf-8") == "città"


def test_weights_have_plain_names_and_the_averaged_ones_come_first(parts, tmp_path):
    train(parts, 3)
    checkpoint = save(parts, tmp_path, 3)
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    load_weights(plain, checkpoint)
    assert torch.equal(plain[0].weight, parts[3].module[0].weight)
    load_weights(plain, checkpoint, "model.safetensors")
    assert torch.equal(plain[0].weight, parts[1][0].weight)


def test_the_mean_of_checkpoints_is_of_what_was_validated_and_comes_first_where_it_was_kept(parts, tmp_path):
    checkpoints, weights = [], []
    for step in (10, 20, 30):
        train(parts, 3)
        checkpoints.append(save(parts, tmp_path, step, total_limit=0))
        weights.append(parts[3].module[0].weight.clone())
    mean = mean_weights(checkpoints)
    torch.testing.assert_close(mean["0.weight"], torch.stack(weights).mean(0))
    assert mean["0.weight"].dtype == torch.float32 and "n_averaged" not in mean
    assert not torch.equal(mean["0.weight"], weights[2])

    kept = save(parts, tmp_path, 40, mean=mean)
    plain = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    load_weights(plain, kept)
    assert torch.equal(plain[0].weight, mean["0.weight"])
    torch.testing.assert_close(mean_weights([kept])["0.weight"], weights[2])  # no mean of a mean


def test_checkpoints_of_kept_steps_stay(parts, tmp_path):
    for step in (10, 20, 30, 40):
        save(parts, tmp_path, step, state={"kept_steps": [10, 20]}, total_limit=1)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-10", "checkpoint-20", "checkpoint-40"]


def test_the_newest_and_the_best_stay(parts, tmp_path):
    for step in (10, 20, 30, 100, 110):
        save(parts, tmp_path, step, state={"best": {"step": 20}}, total_limit=2)
    assert [p.name for p in list_checkpoints(tmp_path)] == ["checkpoint-20", "checkpoint-100", "checkpoint-110"]
    assert best_checkpoint(tmp_path).name == "checkpoint-20"
    assert latest_checkpoint(tmp_path).name == "checkpoint-110"
    save(parts, tmp_path, 120, state={"best": None}, total_limit=0)
    assert len(list_checkpoints(tmp_path)) == 4
    assert best_checkpoint(tmp_path).name == "checkpoint-120"


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "state.json", "ema.safetensors"])
def test_a_damaged_newest_one_is_passed_over_with_a_warning(parts, tmp_path, name):
    save(parts, tmp_path, 10)
    newest = save(parts, tmp_path, 20)
    assert damage(newest) is None
    whole = (newest / name).read_bytes()
    for broken in (whole[: len(whole) // 2], whole[:-1] + bytes([whole[-1] ^ 1]), None):
        if broken is None:
            (newest / name).unlink()
        else:
            (newest / name).write_bytes(broken)
        with pytest.warns(UserWarning, match=rf"passing over the damaged checkpoint .*checkpoint-20: {name}"):
            assert latest_checkpoint(tmp_path).name == "checkpoint-10"
        with pytest.raises(UsageError, match=name):
            find_checkpoint(str(newest), tmp_path)


def test_what_a_kill_left_half_written_is_no_checkpoint(parts, tmp_path):
    whole = save(parts, tmp_path, 10)
    shutil.copytree(whole, tmp_path / "checkpoints" / "partial-20")
    shutil.copytree(whole, tmp_path / "checkpoints" / "checkpoint-20")
    (tmp_path / "checkpoints" / "checkpoint-20" / "manifest.json").unlink()
    with pytest.warns(UserWarning, match="manifest"):
        assert latest_checkpoint(tmp_path).name == "checkpoint-10"


@pytest.mark.parametrize("part", ["optimizer", "weights", "text", "seal"])
def test_a_full_disk_while_saving_is_said_in_one_line_and_the_last_one_stays_good(
    parts, tmp_path, monkeypatch, part
):
    from safetensors import SafetensorError

    from training import checkpoints

    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    broken = {
        "optimizer": (torch, "save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64")),
        "weights": (checkpoints, "save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
        "text": (Path, "write_text", full),
        "seal": (checkpoints, "_fsync", full),
    }
    save(parts, tmp_path, 10)
    owner, name, error = broken[part]

    def fails(*args, **options):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(UsageError, match=r"partial-20.* cannot be written .*--resume latest") as end:
            save(parts, tmp_path, 20)
    assert "\n" not in str(end.value)
    assert latest_checkpoint(tmp_path).name == "checkpoint-10"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-10"]
    save(parts, tmp_path, 20)


def test_an_error_that_is_not_of_the_disk_is_not_taken_for_one(parts, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(RuntimeError, match="CUDA"):
        save(parts, tmp_path, 10)


def test_saving_again_at_the_same_step_replaces(parts, tmp_path):
    save(parts, tmp_path, 10, state={"x": 1})
    train(parts, 1)
    assert read_state(save(parts, tmp_path, 10, state={"x": 2}))["x"] == 2
    assert damage(tmp_path / "checkpoints" / "checkpoint-10") is None


def test_resume_finds_latest_run_folders_and_checkpoints(parts, tmp_path):
    assert find_checkpoint("latest", tmp_path / "new") is None
    with pytest.raises(UsageError, match="no checkpoint there"):
        find_checkpoint(str(tmp_path / "nowhere"), tmp_path)
    checkpoint = save(parts, tmp_path, 10)
    assert find_checkpoint("latest", tmp_path) == checkpoint
    assert find_checkpoint(str(tmp_path), tmp_path / "new") == checkpoint
    assert find_checkpoint(str(checkpoint), tmp_path / "new") == checkpoint


def test_another_model_is_refused_before_anything_changes(parts, tmp_path):
    checkpoint = save(parts, tmp_path, 10)
    other = parts[0].prepare(torch.nn.Sequential(torch.nn.Linear(3, 5)))
    before = other[0].weight.clone()
    with pytest.raises(UsageError, match=r"another model: 0\.bias is \(4,\) there and \(5,\) here"):
        load_checkpoint(parts[0], other, checkpoint)
    assert torch.equal(other[0].weight, before)


def test_a_foreign_pickle_is_not_executed(parts, tmp_path):
    """The optimizer's file is torch's own format: a pickle that calls something must be refused."""
    import pickle

    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    checkpoint = save(parts, tmp_path, 10)
    (checkpoint / "random_states_0.pkl").write_bytes(pickle.dumps(Attack()))  # as older checkpoints hold them
    load_checkpoint(parts[0], parts[1], checkpoint, parts[3])
    assert not (tmp_path / "owned").exists()
    (checkpoint / "optimizer.bin").write_bytes(pickle.dumps(Attack()))
    with pytest.raises(Exception):  # noqa: B017 - whatever torch calls it
        load_checkpoint(parts[0], parts[1], checkpoint, parts[3])
    assert not (tmp_path / "owned").exists()


def test_no_random_states_are_kept_and_older_checkpoints_that_hold_them_load(parts, tmp_path):
    accelerator, model, _, ema = parts
    train(parts, 3)
    checkpoint = save(parts, tmp_path, 3)
    assert not list(checkpoint.glob("random_states*"))
    assert not [name for name in json.loads((checkpoint / "manifest.json").read_text()) if "random" in name]
    uninterrupted = train(parts, 3, step=3)
    accelerator.save_state(str(tmp_path / "whole"))  # with the states, as it was kept before
    states = (tmp_path / "whole" / "random_states_0.pkl").read_bytes()
    (checkpoint / "random_states_0.pkl").write_bytes(states)
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    manifest["random_states_0.pkl"] = [len(states), hashlib.sha256(states).hexdigest()]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert find_checkpoint(str(tmp_path), tmp_path) == checkpoint
    load_checkpoint(accelerator, model, checkpoint, ema)
    assert train(parts, 3, step=3) == uninterrupted


def test_files_beside_the_weights_must_be_there_and_the_same(tmp_path):
    (tmp_path / "data.json").write_text("{}")
    check_files(tmp_path, {"data.json": "{}"})
    with pytest.raises(UsageError, match=r"another data\.json"):
        check_files(tmp_path, {"data.json": "[]"})
    (tmp_path / "data.json").write_text('{"n_train": 10, "names": ["a"]}')  # of before sums were kept
    check_files(tmp_path, {"data.json": '{"n_train": 10, "names": ["a"], "pixel_sum": 7}'})
    for other in ('{"n_train": 11, "names": ["a"], "pixel_sum": 7}', '{"n_train": 10, "pixel_sum": 7}', "text"):
        with pytest.raises(UsageError, match=r"another data\.json"):
            check_files(tmp_path, {"data.json": other})
    with pytest.raises(UsageError, match="of another script"):
        check_files(tmp_path, {"source_tokenizer.json": "{}"})
