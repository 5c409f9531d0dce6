"""Export a finished run's model to be used, served or handed on without the project.

    python -m tools.export runs/translation/demo --to ctranslate2 exported
    python -m tools.export runs/unet/demo --to onnx exported
    python -m tools.export runs/cvae/demo --to hub exported --push_to_hub me/digits

What is written is run at once on real inputs and compared with the run's own model: the largest difference is
printed, and where it is above its limit, nothing is left and the exit code is 1. docs/export.md tells of each form.
"""

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from data.errors import DataError
from tools.exporting import hub_folder
from tools.exporting.comparison import Difference
from tools.exporting.packages import require_packages
from tools.exporting.trained_model import TrainedModel, open_trained_model
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.run_folder import writing

Target = Literal["safetensors", "onnx", "ctranslate2", "hub"]
Quantization = Literal["float32", "int8", "int8_float32"]

# Packages beyond requirements.txt.
PACKAGES: dict[Target, tuple[str, ...]] = {
    "safetensors": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "ctranslate2": ("ctranslate2",),
    "hub": (),
}

FORMS: dict[Target, str] = {"safetensors": "safetensors_folder", "onnx": "onnx_graphs", "hub": "hub_folder"}


class DiffersFromOriginal(Exception):
    """An exported model does not compute what the run's own model computes."""


@contextmanager
def written_aside(destination: Path) -> Iterator[Path]:
    """An empty folder that becomes `destination` at the end; nothing is left where the body raises.

    Raises UsageError where something is there already, or nothing can be written.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise UsageError(f"{destination} is there already: name another folder, or remove it")
    aside = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    with writing(destination):
        aside.mkdir(parents=True)
    try:
        with writing(destination):
            yield aside
            if destination.is_dir():
                destination.rmdir()
            aside.rename(destination)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def export(
    trained: TrainedModel, target: Target, destination: Path, quantization: Quantization = "float32"
) -> list[Difference]:
    """Write the model to `destination`, a new folder, and compare what it computes with the original.

    Raises DiffersFromOriginal, and leaves nothing, where they differ by more than their limit; UsageError for a
    model that the target has no form for, and where nothing can be written.
    """
    with written_aside(destination) as folder:
        if target == "ctranslate2":
            from tools.exporting import ctranslate2_model

            ctranslate2_model.write(trained, folder, quantization)
            found = ctranslate2_model.differences(trained, folder, quantization)
        else:
            form = importlib.import_module(f"tools.exporting.{FORMS[target]}")
            form.write(trained, folder)
            found = form.differences(trained, folder)
        if large := [difference for difference in found if not difference.is_small]:
            raise DiffersFromOriginal(
                f"the exported model differs from the original, nothing is left: {'; '.join(map(str, large))}"
            )
    return found


def main(
    run: Positional[PathFlag],
    dest: Positional[PathFlag],
    to: Annotated[Target, tyro.conf.arg(help="the form that the model is to have")],
    quantization: Annotated[Quantization, tyro.conf.arg(help="ctranslate2: of the matrices")] = "float32",
    push_to_hub: Annotated[str, tyro.conf.arg(help="hub: USER/NAME to upload the folder to")] = "",
    private: Annotated[bool, tyro.conf.arg(help="hub: only you can see what is uploaded")] = False,
) -> None:
    """Write a finished run's model in another form, and compare it with the original.

    Args:
        run: run folder (its best checkpoint is taken) or one checkpoint
        dest: the folder to write; it must not be there yet
    """
    try:
        if quantization != "float32" and to != "ctranslate2":
            raise UsageError("--quantization is of --to ctranslate2: leave it out")
        if (push_to_hub or private) and to != "hub":
            raise UsageError("--push_to_hub and --private are of --to hub: leave them out, or export to it")
        require_packages(f"--to {to}", *PACKAGES[to])
        if push_to_hub:
            hub_folder.require_login()
        trained = open_trained_model(run)
        for difference in export(trained, to, Path(dest), quantization):
            print(difference)
        print(f"{to} of {trained.run.checkpoint}, checked with {trained.inputs_are}: {dest}")
        if push_to_hub:
            print(hub_folder.push(Path(dest), push_to_hub, private))
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except DiffersFromOriginal as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
