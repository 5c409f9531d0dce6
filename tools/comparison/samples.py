"""What runs made of the same examples, side by side: translations with their reference, and a few figures."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from tools.comparison.runs import Run

N_SENTENCES = 20
MOST_SENTENCES_READ = 20_000
MOST_CHARACTERS = 600  # of a sentence
MOST_RUNS = 8  # whose samples are shown
MOST_WIDTH = 1000  # pixels of a figure
FIGURES = {  # of each script, by file name, the ones to compare by
    "translation": {"attention_1": "attention", "lengths": "quality by sentence length"},
    "unet": {"best_and_worst": "best and worst test pictures", "overlays": "masks over the epochs"},
    "cvae": {
        "wrong_labels": "test images under wrong labels",
        "relabelled": "the same image under every label",
        "prior_samples": "samples from the prior",
        "reconstructions": "reconstructions",
    },
    "cifar": {"misclassified": "most confident mistakes", "confusion_matrix": "confusion matrix"},
}


def same_sentences(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Up to N_SENTENCES test sentences that as many of the runs as possible have translated, evenly spaced.

    Each has `source`, `reference` and `outputs`, pairs of the run's place and its translation.
    """
    read = {i: _translations(run.path) for i, run in enumerate(runs) if run.path.is_dir()}
    translated = {i: found for i, found in read.items() if found}
    counts = Counter(source for found in translated.values() for source in found)
    shared = [source for source, count in counts.items() if count == max(counts.values())]
    chosen = shared[:: max(len(shared) // N_SENTENCES, 1)][:N_SENTENCES]
    sentences = []
    for source in chosen:
        owners = {i: found[source] for i, found in translated.items() if source in found}
        reference = next(iter(owners.values()))[0]
        outputs = [[i, _shortened(hypothesis)] for i, (_, hypothesis) in owners.items()]
        sentences.append({"source": _shortened(source), "reference": _shortened(reference), "outputs": outputs})
    return sentences


def _translations(folder: Path) -> dict[str, tuple[str, str]]:
    """{source: (reference, translation)} of a run's test sentences; empty where it has none."""
    paths = [folder / "translations" / f"test.{side}.txt" for side in ("src", "ref", "hyp")]
    if not all(path.is_file() for path in paths):
        return {}
    texts = [path.read_text(encoding="utf-8", errors="replace").split("\n") for path in paths]
    lines = zip(*texts, strict=False)  # a run that is still writing may be a line short
    return {
        source: (reference, hypothesis)
        for source, reference, hypothesis in list(lines)[:MOST_SENTENCES_READ]
        if source
    }


def _shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"


def same_figures(runs: Sequence[Run], script: str, budget: int) -> tuple[list[dict[str, Any]], int]:
    """The script's chosen figures of the runs, as data URIs of at most `budget` characters in all.

    Each has a `title` and `images` with the run's place, address and size. Returns them with the number of images
    for which there was no room.
    """
    figures = []
    left_out = 0
    for name, title in FIGURES.get(script, {}).items():
        images = []
        for i, run in enumerate(runs):
            path = run.path / "figures" / f"{name}.png"
            if not path.is_file():
                continue
            image = _as_data_uri(path)
            if image is None or len(image["src"]) > budget:
                left_out += 1
                continue
            budget -= len(image["src"])
            images.append({"run": i, **image})
        if images:
            figures.append({"title": title, "images": images})
    return figures, left_out


def _as_data_uri(path: Path) -> dict[str, Any] | None:
    """A figure no wider than MOST_WIDTH; None where it cannot be read, as while a run writes it."""
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, SyntaxError):
        return None
    image.thumbnail((MOST_WIDTH, 4 * MOST_WIDTH))
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=80)
    address = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"src": address, "width": image.width, "height": image.height}
