"""A run of train_unet.py on other pictures with masks: Dice, IoU, the best and the worst masks."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.images.masked import MaskSplit, masks_from_trimaps
from data.images.masked_folders import load_test_masks
from data.images.pets import holds_pets, load_test_pets
from figures.segmentation import write_result_figures
from tools.evaluation.request import Request, figures_below
from tools.segment import Segmenter
from train_unet import evaluate
from training.errors import UsageError


def evaluate_segmenter(
    run: str, accelerator: Accelerator, request: Request, folder: Path
) -> tuple[dict[str, Any], str]:
    """Segment the folder's pictures as the run's own test did, without and with its views.

    Writes the figures of the results and test_predictions.npz into `folder`. Returns the metrics and what to print.
    Raises UsageError and DataError.
    """
    segmenter = Segmenter(run, accelerator.device)
    config, names = segmenter.config, segmenter.class_names
    pictures, notes = load_pictures(segmenter, request.data_dir, whole=request.split == "all")
    net = (
        accelerator,
        segmenter.model,
        pictures.to(accelerator.device),
        names,
        segmenter.mean,
        segmenter.std,
        config,
    )
    metrics, predicted, dice = evaluate(*net)
    figures_below(folder)
    write_result_figures(
        folder, pictures.images, pictures.masks, predicted.cpu(), dice.cpu(), pictures.names, names
    )
    report = [
        *notes,
        f"Dice {metrics['dice']:.4f}, IoU {metrics['iou']:.4f} over all pixels of {len(pictures):,} pictures; "
        f"{metrics['dice_per_image']:.4f}, {metrics['iou_per_image']:.4f} as means of them",
    ]
    if config.views != "one":
        with_views, _, _ = evaluate(*net, config.views)
        metrics |= {f"{name}_views": with_views[name] for name in ("dice", "iou")}
        report.append(f"Dice {with_views['dice']:.4f} over the views of {config.views!r}")
    return metrics, "\n".join(report)


def load_pictures(segmenter: Segmenter, data_dir: str, whole: bool) -> tuple[MaskSplit, list[str]]:
    """The pictures of a folder with masks of the run's classes, and how the files were understood, a line each."""
    config, names = segmenter.config, segmenter.class_names
    if not holds_pets(Path(data_dir)):
        return load_test_masks(
            Path(data_dir),
            names,
            segmenter.mask_values,
            image_size=config.image_size,
            ignore_value=None if config.ignore_value < 0 else config.ignore_value,
            whole=whole,
        )
    classes = ["background", "pet", "border"][: 2 if config.classes == "binary" else 3]
    if list(names) != classes:
        raise UsageError(
            f"{data_dir} has masks of {', '.join(classes)}, but the run tells apart {', '.join(names)}"
        )
    pets = load_test_pets(data_dir, image_size=config.image_size, whole=whole)
    masks = masks_from_trimaps(pets.trimaps, config.classes, config.border)
    return MaskSplit(pets.images, masks, pets.names), []
