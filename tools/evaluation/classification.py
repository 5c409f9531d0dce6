"""A run of train_cifar.py on other images: accuracy, loss, confusion, mistakes."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator

from data.images.labelled import load_test_images
from figures.classification import write_result_figures
from tools.classify import Classifier
from tools.evaluation.request import Request, figures_below
from train_cifar import evaluate


def evaluate_classifier(
    run: str, accelerator: Accelerator, request: Request, folder: Path
) -> tuple[dict[str, Any], str]:
    """Classify the folder's images as the run's own test did, without and with its views.

    Writes the figures of the results into `folder`. Returns the metrics and what to print. Raises UsageError and
    DataError.
    """
    classifier = Classifier(run, accelerator.device)
    config, names = classifier.config, classifier.class_names
    images = load_test_images(
        request.data_dir,
        names,
        image_size=classifier.image_size,
        n_channels=3,
        whole=request.split == "all",
    )
    on_device = images.to(accelerator.device)
    net = accelerator, classifier.model, on_device, classifier.mean, classifier.std, config
    metrics, probabilities = evaluate(*net)
    write_result_figures(figures_below(folder), images.images, images.labels, probabilities.cpu(), names)
    report = f"accuracy {metrics['accuracy']:.2%} on {len(images):,} images, loss {metrics['loss']:.3f}"
    if config.views == "one":
        return metrics, report
    with_views, _ = evaluate(*net, config.views)
    report += f"\naccuracy over the views of {config.views!r}: {with_views['accuracy']:.2%}"
    return {**metrics, "accuracy_views": with_views["accuracy"]}, report
