"""Evaluate a finished run on any data of its kind: `python -m tools.evaluate RUN --data_dir FOLDER`.

    python -m tools.evaluate runs/translation/demo --test_files news.en news.it
    python -m tools.evaluate runs/cifar/resnet --data_dir photographs
    python -m tools.evaluate runs/unet/mp-tr-dice --data_dir my_pictures --split all

All that it needs is in the run's folder: weights, settings, class names, statistics, tokenizers. On the data of the
run's own test the numbers are those of that test.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro
from accelerate import Accelerator
from tyro.conf import Positional

from data.errors import DataError
from tools.evaluation.classification import evaluate_classifier
from tools.evaluation.generation import evaluate_cvae
from tools.evaluation.request import Request, Split
from tools.evaluation.segmentation import evaluate_segmenter
from tools.evaluation.translation import evaluate_translation
from training.checkpoints import checkpoint_of_run
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.finished_run import script_of_run, summary_of_checkpoint
from training.ranges import BeamSize, LengthPower
from training.run import open_accelerator
from training.run_folder import write_whole, writing

Evaluator = Callable[[str, Accelerator, Request, Path], tuple[dict[str, Any], str]]
EVALUATORS: dict[str, Evaluator] = {
    "translation": evaluate_translation,
    "unet": evaluate_segmenter,
    "cvae": evaluate_cvae,
    "cifar": evaluate_classifier,
}


def evaluate_run(run: str, request: Request, output_dir: str = "") -> Path:
    """Evaluate a run, print what it reaches, and write evaluation.json and figures; returns their folder.

    That is `output_dir`, or evaluations/<name of the data> in the run's folder. In the precision of the run's own
    test, but in fp32 where that was fp16 and there is no GPU. Raises UsageError and DataError.
    """
    script = script_of_run(run)
    checkpoint = checkpoint_of_run(run)
    request.check(script)
    data = request.data
    run_dir = checkpoint.absolute().parents[1]
    folder = Path(output_dir) if output_dir else run_dir / "evaluations" / _name_of(data)
    _refuse_other_data(folder, data)
    precision = summary_of_checkpoint(checkpoint).get("mixed_precision", "no")
    if precision == "fp16" and not torch.accelerator.is_available():
        print("the run's test was in fp16, which needs a GPU: evaluating in fp32", flush=True)
        precision = "no"
    accelerator = open_accelerator(mixed_precision=precision)
    metrics, report = EVALUATORS[script](run, accelerator, request, folder)
    facts = {
        "run": str(run_dir),
        "checkpoint": checkpoint.name,
        "data": data,
        "split": request.split,
        "mixed_precision": precision,
    }
    with writing(folder):
        text = json.dumps({**{f"test/{name}": value for name, value in metrics.items()}, **facts}, indent=1)
        write_whole(folder / "evaluation.json", text + "\n")
    print(f"{report}\nevaluation.json and figures in {folder}")
    return folder


def _name_of(data: list[str]) -> str:
    """The name of the folder, or of the first file without its suffixes."""
    path = Path(data[0])
    return path.name if path.is_dir() else path.name.split(".")[0] or path.name


def _refuse_other_data(folder: Path, data: list[str]) -> None:
    """Raise UsageError where `folder` holds an evaluation of other data, which may have the same name."""
    path = folder / "evaluation.json"
    if not path.exists():
        return
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))["data"]
    except (OSError, ValueError, KeyError, TypeError):
        theirs = ["other data"]
    if theirs != data:
        raise UsageError(f"{folder} holds the evaluation of {' '.join(theirs)}: name another --output_dir")


def main(
    run: Positional[PathFlag],
    data_dir: Annotated[
        PathFlag, tyro.conf.arg(help="images or pictures with masks, in any layout of training")
    ] = "",
    test_files: Annotated[
        tuple[PathFlag, ...], tyro.conf.arg(help="sentences: SOURCE TARGET, or .tsv, .csv, .json[l], .parquet")
    ] = (),
    split: Annotated[
        Split, tyro.conf.arg(help="of --data_dir: what training would test on, or all; a test split may be alone")
    ] = "test",
    judge: Annotated[PathFlag, tyro.conf.arg(help="VAE: run of train_cifar.py that counts label hits")] = "",
    beam_size: Annotated[BeamSize | None, tyro.conf.arg(help="translation: beams; default: the run's")] = None,
    length_penalty: Annotated[
        LengthPower | None, tyro.conf.arg(help="translation: power of the length; default: as the run was tested")
    ] = None,
    output_dir: Annotated[
        PathFlag,
        tyro.conf.arg(help="where results go; default: evaluations/<name of the data> in the run's folder"),
    ] = "",
) -> None:
    """Score a finished run on other data of its kind, as its own test does, and draw the same figures.

    Args:
        run: run folder (its best checkpoint is taken) or one checkpoint
    """
    try:
        evaluate_run(run, Request(data_dir, test_files, split, judge, beam_size, length_penalty), output_dir)
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
