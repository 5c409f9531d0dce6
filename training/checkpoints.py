"""Checkpoints that a killed run resumes from bit for bit, and that are never half-written.

`checkpoints/checkpoint-<step>/` holds model (safetensors, plain names whatever wrapped the model), optimizer,
gradient scaler (written by Accelerate), the EMA weights, `state.json` (counters, best value, config, tracker id)
and the files the task adds (tokenizers), and the mean of several checkpoints' weights where that is the best. It is
written under another name, fsynced, sealed with a manifest of sizes and sha256, and renamed.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from training.ema import EMA
from training.errors import UsageError
from training.processes import on_main_process, raise_together
from training.run_folder import DISK_ERRORS, cannot_write, writing

MANIFEST, STATE = "manifest.json", "state.json"
MODEL, AVERAGED = "model.safetensors", "ema.safetensors"
MEAN = "mean.safetensors"  # of the weights of several checkpoints, where these were the best
OTHER_GROUPS = (
    "was trained by a build_optimizer that orders or groups the parameters otherwise: put that one back, or let "
    "the averages begin anew by --resume_changes"
)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def step_of(checkpoint: Path) -> int:
    """The number of updates done at a `checkpoint-<step>` folder."""
    return int(checkpoint.name.rpartition("-")[2])


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None when every file is as its manifest says."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
    except (OSError, ValueError):
        return "its manifest is missing or unreadable"
    for name, (size, digest) in manifest.items():
        path = checkpoint / name
        if not path.is_file() or path.stat().st_size != size:
            return f"{name} is missing or truncated"
        if _sha256(path) != digest:
            return f"{name} has changed"
    return None


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The `checkpoint-<step>` folders of a run, oldest first, sound or not."""
    found = (run_dir / "checkpoints").glob("checkpoint-*")
    return sorted((p for p in found if p.name.rpartition("-")[2].isdigit()), key=step_of)


def latest_checkpoint(run_dir: Path) -> Path | None:
    """The newest sound checkpoint of a run folder; damaged ones are passed over with a warning."""
    for checkpoint in reversed(list_checkpoints(run_dir)):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint
        warnings.warn(f"passing over the damaged checkpoint {checkpoint}: {problem}", stacklevel=2)
    return None


def best_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint with the best validation so far, by the newest one's record; else the newest."""
    latest = latest_checkpoint(run_dir)
    if latest is None:
        return None
    best = read_state(latest).get("best")
    path = latest.with_name(f"checkpoint-{best['step']}") if best else latest
    return path if damage(path) is None else latest


def find_checkpoint(resume: str, run_dir: Path, prefer_best: bool = False) -> Path | None:
    """The checkpoint that `--resume` names: "latest" (of run_dir, None if it has none), a run folder, or one
    checkpoint. Of a run folder the newest is taken, or with `prefer_best` the best.

    Raises UsageError if the path holds no sound checkpoint.
    """
    path = run_dir if resume == "latest" else Path(resume)
    if path.name.startswith("checkpoint-") and path.is_dir():
        problem = damage(path)
        if problem:
            raise UsageError(f"--resume {resume}: {problem}; take an older one, or --resume latest")
        return path
    checkpoint = (best_checkpoint if prefer_best else latest_checkpoint)(path)
    if checkpoint is None and (resume != "latest" or prefer_best):
        raise UsageError(f"{path}: no checkpoint there; name the folder of a run, or a checkpoint in it")
    return checkpoint


def checkpoint_of_run(run: str | Path) -> Path:
    """What a tool works with: the best checkpoint of the run folder `run`, or the one checkpoint that it names.

    Raises UsageError if there is none.
    """
    checkpoint = find_checkpoint(str(run), Path(run), prefer_best=True)
    assert checkpoint is not None  # it is None only where the latest would do
    return checkpoint


def read_state(checkpoint: Path) -> dict:
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))


def _plain_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names without the prefixes of DDP, and tensors that own their memory, as safetensors wants them."""
    return {name.removeprefix("module."): tensor.contiguous() for name, tensor in weights.items()}


def save_checkpoint(
    accelerator: Accelerator,
    model: torch.nn.Module,
    run_dir: Path,
    state: dict,
    *,
    ema: EMA | None = None,
    mean: dict[str, torch.Tensor] | None = None,
    files: dict[str, str] | None = None,
    total_limit: int = 2,
) -> Path:
    """Write `checkpoint-<state["step"]>`; called by all processes. Returns its path.

    `state` is JSON data with "step" and, once there is one, "best" ({"step", ..}); `files` are texts to put
    beside it by name. `mean` are weights of several checkpoints, which whoever loads this one takes. Afterwards the
    newest `total_limit` checkpoints stay (0: all), the best, and those of the steps in state["kept_steps"].

    Raises UsageError, in all processes, where it cannot be written; the earlier ones are as they were then.
    """
    final = run_dir / "checkpoints" / f"checkpoint-{state['step']}"
    partial = final.with_name(f"partial-{state['step']}")

    def begin() -> None:
        with writing(partial, training=True):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)

    on_main_process(accelerator, begin)
    whole_weights = accelerator.get_state_dict(model)  # gathered when sharded
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def write_plain_names(models, weights, output_dir):
        if not sharded:  # ours has the right names: Accelerate's would keep DDP's "module." prefix
            weights.clear()

    def seal() -> None:
        with writing(partial, training=True):
            for path in partial.glob("random_states_*.pkl"):  # of no use: each micro-batch seeds its own
                path.unlink()
            paths = sorted(p for p in partial.rglob("*") if p.is_file())
            manifest = {str(p.relative_to(partial)): (p.stat().st_size, _sha256(p)) for p in paths}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=1))
            for path in (*paths, partial / MANIFEST, partial):
                _fsync(path)
            if final.exists():  # saved before at this step: a resume that stopped at once, or a damaged one
                shutil.rmtree(final)
            partial.rename(final)
            _fsync(final.parent)
            _remove_old(run_dir, state, total_limit)

    problem = None
    hook = accelerator.register_save_state_pre_hook(write_plain_names)
    try:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            save_file(_plain_names(whole_weights), partial / MODEL)
            if ema is not None:
                save_file(_plain_names(ema.state_dict()), partial / AVERAGED)
            if mean is not None:
                save_file(_plain_names(mean), partial / MEAN)
            for name, text in (files or {}).items():
                (partial / name).write_text(text, encoding="utf-8")
            (partial / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
    except (OSError, SafetensorError, RuntimeError) as error:
        disk_error = _disk_error(error)
        if disk_error is None:
            raise
        problem = str(cannot_write(partial, disk_error, training=True))
    finally:
        hook.remove()
    try:
        raise_together(accelerator, problem)  # every rank has written its part
        on_main_process(accelerator, seal)
    except UsageError:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # what there is of it takes the space of the next try
        raise
    return final


def _disk_error(error: Exception) -> OSError | None:
    """The failed write behind what torch, safetensors or Python raised; None where it was something else."""
    if isinstance(error, OSError):
        return error
    text = str(error)
    if isinstance(error, SafetensorError) or "PytorchStreamWriter" in text or "inline_container" in text:
        number = next((n for n in DISK_ERRORS if f"os error {n}" in text or os.strerror(n) in text), None)
        return OSError(number, os.strerror(number)) if number else OSError("not all of it; is the disk full?")
    return None


def _remove_old(run_dir: Path, state: dict, total_limit: int) -> None:
    checkpoints = list_checkpoints(run_dir)
    kept = {(state.get("best") or {}).get("step"), *state.get("kept_steps", ())}
    for checkpoint in checkpoints[:-total_limit] if total_limit > 0 else []:
        if step_of(checkpoint) not in kept:
            shutil.rmtree(checkpoint)


def set_aside_after(run_dir: Path, step: int) -> None:
    """Rename the checkpoints past `step` to `abandoned-<step>`: a run that goes back there makes new ones."""
    for checkpoint in list_checkpoints(run_dir):
        if step_of(checkpoint) > step:
            aside = checkpoint.with_name(f"abandoned-{step_of(checkpoint)}")
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)


def load_checkpoint(
    accelerator: Accelerator,
    model: torch.nn.Module,
    checkpoint: Path,
    ema: EMA | None = None,
    optimizer: str | None = None,
    resume_changes: bool = False,
    optimizer_groups: Sequence[Sequence[str]] | None = None,
) -> dict:
    """Restore model, optimizer, scaler and EMA in place; called by all processes.

    Returns the saved `state`. Raises UsageError when the weights do not fit the model, or when the checkpoint is of
    another `--optimizer` or of other groups of parameters, by name (`optimizer_groups`): torch goes by their order,
    and averages would be taken for those of another. With `resume_changes` they begin anew.
    """
    check_weights_fit(accelerator.unwrap_model(model), checkpoint)
    state = read_state(checkpoint)
    trained_with = state.get("config", {}).get("optimizer", optimizer)
    other_optimizer = ""
    if trained_with != optimizer:
        other_optimizer = f"was trained with --optimizer {trained_with}: resume it with the same"
    elif optimizer_groups is not None and state.get("optimizer_groups", optimizer_groups) != optimizer_groups:
        other_optimizer = OTHER_GROUPS
    if other_optimizer and not resume_changes:
        raise UsageError(f"{checkpoint} {other_optimizer}")
    if other_optimizer and accelerator.is_main_process:
        print(f"resuming {checkpoint}: the averages of the optimizer begin anew", flush=True)
    sharded = accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)

    def load_plain_names(models, input_dir):
        if not sharded:
            load_weights(accelerator.unwrap_model(models.pop()), checkpoint, MODEL)

    if accelerator.scaler is not None and not (checkpoint / "scaler.pt").exists():
        raise UsageError(f"{checkpoint} was not trained in fp16: resume it in the precision of its run")
    hook = accelerator.register_load_state_pre_hook(load_plain_names)
    optimizers = accelerator._optimizers
    if other_optimizer:
        accelerator._optimizers = []  # nothing to load: load_state would give it what is another's
    try:
        accelerator.load_state(str(checkpoint))
    except ValueError as error:
        if "parameter group" in str(error):  # of a checkpoint that does not name what is in its groups
            raise UsageError(f"{checkpoint} {OTHER_GROUPS}") from error
        raise
    finally:
        accelerator._optimizers = optimizers
        hook.remove()
    accelerator.step = 0  # a checkpoint stands between updates: the next micro-batch opens a window
    if ema is not None:
        if not (checkpoint / AVERAGED).exists():
            raise UsageError(f"{checkpoint} holds no EMA weights: resume it with --ema_decay 0")
        ema.load_state_dict(load_file(checkpoint / AVERAGED))
    return state


def check_weights_fit(model: torch.nn.Module, checkpoint: Path) -> None:
    """Raise UsageError, naming the first difference, unless the checkpoint has this model's tensors."""
    saved = {k: tuple(v.shape) for k, v in load_file(checkpoint / MODEL).items()}
    own = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    for name in sorted(saved.keys() | own.keys()):
        if saved.get(name) != own.get(name):
            raise UsageError(
                f"{checkpoint} is of another model: {name} is {saved.get(name, 'absent')} there and "
                f"{own.get(name, 'absent')} here; give the flags that it was trained with"
            )


def check_files(checkpoint: Path, files: dict[str, str]) -> None:
    """Raise UsageError unless the texts that the task put beside the weights are these, by name."""
    for name, text in files.items():
        path = checkpoint / name
        if not path.exists():
            raise UsageError(f"{checkpoint} holds no {name}: it is of another script; name a run of this one")
        if not _same_content(path.read_text(encoding="utf-8"), text):
            raise UsageError(
                f"{checkpoint} was trained with another {name}: give the data and the flags of that run (they "
                "are in its state.json), or start anew in another --output_dir"
            )


def _same_content(saved: str, text: str) -> bool:
    """Equal, or both JSON objects of which the saved one, of an older version, has some of the other's entries."""
    if saved == text:
        return True
    try:
        saved_object, current = json.loads(saved), json.loads(text)
    except ValueError:
        return False
    if not (isinstance(saved_object, dict) and isinstance(current, dict)):
        return False
    missing = object()
    return bool(saved_object) and all(current.get(name, missing) == value for name, value in saved_object.items())


def load_weights(model: torch.nn.Module, checkpoint: Path, name: str | None = None) -> None:
    """Load a checkpoint's weights into an unwrapped model: those that it was validated with, or file `name`."""
    if name is None:
        name = MEAN if (checkpoint / MEAN).exists() else _validated_weights(checkpoint)
    model.load_state_dict(_load_weights(checkpoint / name))


def mean_weights(checkpoints: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean, by name, of the weights of the checkpoints, of their moving averages where they have these.

    What is no floating-point number, such as a count, is that of the last one.
    """
    mean: dict[str, torch.Tensor] = {}
    for n, checkpoint in enumerate(checkpoints, start=1):
        for name, tensor in _load_weights(checkpoint / _validated_weights(checkpoint)).items():
            weights = tensor.double() if tensor.is_floating_point() else tensor
            before = mean.get(name) if tensor.is_floating_point() else None
            mean[name] = weights if before is None else before.lerp_(weights, 1 / n)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in mean.items()}


def _validated_weights(checkpoint: Path) -> str:
    return AVERAGED if (checkpoint / AVERAGED).exists() else MODEL


def _load_weights(path: Path) -> dict[str, torch.Tensor]:
    weights = load_file(path)
    weights.pop("n_averaged", None)
    return weights
