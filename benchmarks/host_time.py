"""What an update asks of the host, counted: kernels that a GPU would be given, and values that would be waited for.

    python -m benchmarks.host_time

A small model on a GPU trains no faster than the host can launch its kernels, and each value that the host reads
stops it until the GPU is done. A CPU shows both, whatever the model's width: the scripts train tiny ones here. An
update is counted from its beginning to that of the next one: optimizer, average of the weights and the loop are in
it; log lines, of which there are none here, are not. The kernels are the CPU's operations: a GPU's may be fewer,
where one does what takes a CPU several, as in Muon's products of equal shape.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch.profiler
import tyro
from torch.autograd.profiler_util import FunctionEvent

import train_cifar
import train_cvae
import train_translation
import train_unet
from training.run_folder import release_folders

# The host reads a value of the device, or needs one to know the size of a result.
WAITS = frozenset({"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique2"})
# Operations that give a kernel nothing to do: they look at memory in another way, or allocate it.
VIEWS = """
_local_scalar_dense _reshape_alias _unsafe_view alias as_strided as_strided_ chunk detach detach_ diagonal empty
empty_like empty_strided expand is_nonzero item lift_fresh narrow permute reshape resize_ resolve_conj resolve_neg
result_type select set_ slice split split_with_sizes squeeze t to transpose unbind unflatten unfold unsqueeze view
view_as
"""
NO_KERNEL = frozenset(f"aten::{name}" for name in VIEWS.split())


@dataclass(frozen=True)
class Counts:
    """Of one update on average."""

    kernels: float
    waits: float
    most_frequent: tuple[tuple[str, float], ...]  # kernels by name


TINY: dict[str, tuple[Any, str, dict[str, Any]]] = {  # by name: script, recipe, settings
    "translation, Transformer, AdamW": (train_translation, "demo", {"d_model": 32, "d_ff": 32}),
    "translation, Transformer, Muon": (train_translation, "demo", {"d_model": 32, "d_ff": 32, "optimizer": "muon"}),
    "translation, LSTM, Muon": (
        train_translation,
        "demo",
        {"model": "lstm", "hidden_size": 16, "embedding_dim": 16, "tied_embeddings": "output", "optimizer": "muon"},
    ),
    "U-Net, Muon": (train_unet, "demo", {"width": 8, "image_size": 32}),
    "U-Net, AdamW": (train_unet, "demo", {"width": 8, "image_size": 32, "optimizer": "adamw"}),
    "VAE, AdamW": (train_cvae, "demo", {"width": 16, "batch_size": 8, "judge": "none", "ema_decay": 0.99}),
    "SpeedNet, Muon": (train_cifar, "demo", {"speednet_widths": (8, 8, 8), "ema_decay": 0.99}),
    "ResNet, SGD": (
        train_cifar,
        "demo",
        {"model": "resnet", "optimizer": "sgd", "lr": 0.01, "batch_size": 8, "ema_decay": 0.99},
    ),
}


class _Done(Exception):
    """Ends a run once its updates are seen."""


def train_some_updates(
    script: Any, recipe: str, settings: dict[str, Any], actions: dict[int, Callable[[], object]]
) -> None:
    """Train a run of `script`; actions[n] is called before update n, counted from 0. The last one ends the run."""
    genuine = script.train_update
    n_calls = 0

    def update(*arguments):
        nonlocal n_calls
        if n_calls in actions:
            actions[n_calls]()
        if n_calls == max(actions):
            raise _Done
        n_calls += 1
        return genuine(*arguments)

    with tempfile.TemporaryDirectory() as folder:
        run = {"output_dir": folder, "tracker": "none", "log_every": 0, "max_train_steps": 100}
        _, config = script.RECIPES[recipe]
        try:
            script.train_update = update
            script.main(replace(config, **run, **settings))
        except _Done:
            return
        finally:
            script.train_update = genuine
            release_folders()
    raise AssertionError("the run ended before its updates were seen")


def count_update(script: Any, recipe: str, settings: dict[str, Any], n_updates: int = 2) -> Counts:
    """Train a run of `script` for a few updates and count in `n_updates` of them, after three that warm up."""
    profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
    train_some_updates(script, recipe, settings, {3: profile.start, 3 + n_updates: profile.stop})
    return _counts(profile.events() or [], n_updates)


def _counts(events: Sequence[FunctionEvent], n_updates: int) -> Counts:
    names = Counter(name for event in events if event.cpu_parent is None for name in _operations(event))
    kernels = Counter({name: n for name, n in names.items() if name not in NO_KERNEL})
    return Counts(
        kernels=kernels.total() / n_updates,
        waits=sum(n for name, n in names.items() if name in WAITS) / n_updates,
        most_frequent=tuple((name, n / n_updates) for name, n in kernels.most_common(5)),
    )


def _operations(event: FunctionEvent) -> Iterator[str]:
    """The innermost operations below an event; one over many tensors is one, as on a GPU."""
    over_many = event.name.startswith(("aten::_foreach", "aten::_fused"))
    inner = [] if over_many else [name for child in event.cpu_children for name in _operations(child)]
    yield from inner
    if not inner and event.name.startswith("aten::"):
        yield event.name


def main(n_updates: int = 2) -> None:
    """Print a line for each script and optimizer.

    Args:
        n_updates: updates that are counted
    """
    print(f"{'':34}{'kernels':>9}{'waits':>7}  most frequent, an update")
    for name, (script, recipe, settings) in TINY.items():
        counts = count_update(script, recipe, settings, n_updates)
        frequent = ", ".join(f"{kernel.removeprefix('aten::')} {n:.0f}" for kernel, n in counts.most_frequent)
        print(f"{name:34}{counts.kernels:9.0f}{counts.waits:7.1f}  {frequent}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
