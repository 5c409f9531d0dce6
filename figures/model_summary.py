"""A model's layers, output shapes and numbers of parameters, as one example runs through it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from figures.images import plot_table


@dataclass(frozen=True)
class LayerRow:
    """One module of a model."""

    name: str  # its dotted path in the model; "(model)" for the model itself
    type: str  # the name of its class
    output_shape: tuple[int, ...] | None  # of its first run, the first tensor it returns; None if it does not run
    n_parameters: int  # those it owns itself and no row above it owns
    n_runs: int  # how often the example went through it


@torch.no_grad()
def model_summary(model: nn.Module, example: Tensor) -> list[LayerRow]:
    """A row for each module without children, in the order in which they first run on `example`.

    A module with children has a row, above theirs, where it owns parameters itself. Modules with parameters
    that do not run as modules (a parent computes with their weights) come last. A shared parameter counts in
    the first row only, so that the rows sum up to `sum(p.numel() for p in model.parameters())`.

    `example`: a batch as `model` takes it, on the model's device. It runs in evaluation mode and without
    gradients; modes, buffers, hooks and torch's random numbers are afterwards as they were before.
    """
    names = {
        module: name or "(model)"
        for name, module in model.named_modules()
        if next(module.children(), None) is None or _own_parameters(module)
    }
    n_runs: dict[nn.Module, int] = {}  # in the order in which they start
    shapes: dict[nn.Module, tuple[int, ...] | None] = {}

    def count_run(module: nn.Module, _inputs: tuple) -> None:
        n_runs[module] = n_runs.get(module, 0) + 1

    def note_shape(module: nn.Module, _inputs: tuple, output: object) -> None:
        tensor = _first_tensor(output)
        shapes.setdefault(module, None if tensor is None else tuple(tensor.shape))

    modes = {module: module.training for module in model.modules()}
    buffers = [
        (module, name, buffer, buffer.clone())  # the run may write to the buffer, or put another in its place
        for module in modes
        for name, buffer in module.named_buffers(recurse=False)
    ]
    devices = [example.device] if example.is_cuda else []
    try:
        with ExitStack() as stack, torch.random.fork_rng(devices):
            for module in names:
                stack.enter_context(module.register_forward_pre_hook(count_run))
                stack.enter_context(module.register_forward_hook(note_shape))
            model.eval()
            model(example)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for module, name, buffer, before in buffers:
            setattr(module, name, buffer.copy_(before))

    rows, counted = [], set()
    not_run = [module for module in names if module not in n_runs and _own_parameters(module)]
    for module in [*n_runs, *not_run]:
        parameters = [parameter for parameter in _own_parameters(module) if parameter not in counted]
        counted.update(parameters)
        rows.append(
            LayerRow(
                name=names[module],
                type=type(module).__name__,
                output_shape=shapes.get(module),
                n_parameters=sum(parameter.numel() for parameter in parameters),
                n_runs=n_runs.get(module, 0),
            )
        )
    return rows


def summary_table(rows: Sequence[LayerRow]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, a total in the last row; right-aligned parameters (`align="lllr"`) read best.

    A module that runs several times has the number of its runs behind its type: `Conv2d x 2`.
    """
    cells = [
        [
            row.name,
            f"{row.type} x {row.n_runs}" if row.n_runs > 1 else row.type,
            "-" if row.output_shape is None else str(row.output_shape),
            f"{row.n_parameters:,}",
        ]
        for row in rows
    ]
    total = ["total", "", "", f"{sum(row.n_parameters for row in rows):,}"]
    return ["layer", "type", "output shape", "parameters"], [*cells, total]


def write_model_summary(path: Path, model: nn.Module, example: Tensor) -> None:
    """Write the table of the model's layers, output shapes and parameters as a PNG; `example` is an input."""
    header, rows = summary_table(model_summary(model, example))
    plot_table(path, header, rows, title=type(model).__name__)


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))


def _first_tensor(output: object) -> Tensor | None:
    """The first tensor in nested tuples, lists and mappings; None where there is none."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        output = list(output.values())
    if isinstance(output, tuple | list):
        tensors = (_first_tensor(part) for part in output)
        return next((tensor for tensor in tensors if tensor is not None), None)
    return None
