"""Make README's picture from three finished runs: wrong labels, masks, and a translation with its attention.

python -m tools.showcase --translation runs/translation/demo --cvae runs/cvae/demo --unet runs/unet/demo
"""

import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro

import train_cvae
from data.errors import DataError
from data.seeding import Stream, seeded_generator
from data.text.tokenization import BOS_ID, EOS_ID, readable
from figures.segmentation_comparison import read_run
from figures.showcase import AttendedTranslation, RelabelledImages, SegmentedPictures, write_showcase
from models.cvae_pictures import relabelled
from models.decoding import greedy_search
from tools.translate import Translator
from train_translation import SPECIAL
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.finished_run import open_run

CPU = torch.device("cpu")
N_IMAGES, N_LABELS, N_PICTURES = 4, 10, 4  # shown of the VAE and of the U-Net
N_WORDS = 7  # of the sentence that is shown, or nearly so


@torch.no_grad()
def attended_translation(run: Path, sentence: str = "") -> AttendedTranslation:
    """A sentence translated greedily, and the mean attention of the heads.

    Without a `sentence`, the first of those test sentences that are nearest to `N_WORDS` words. Raises UsageError
    where the run has no checkpoint, or none of these.
    """
    translator = Translator(run, CPU)
    if not sentence:
        path = run / "translations" / "test.src.txt"
        if not path.exists():
            raise UsageError(f"{path} is missing: let the run finish, or give --sentence")
        sentences = path.read_text(encoding="utf-8").splitlines()
        sentence = min(sentences, key=lambda text: abs(len(text.split()) - N_WORDS))
    source_ids = [*translator.source_tokenizer.encode([sentence])[0], EOS_ID]
    source = torch.tensor([source_ids])
    output = greedy_search(translator.model, source, SPECIAL)[0]
    weights = translator.model.cross_attention_weights(source, torch.tensor([[BOS_ID, *output]]))[0]  # (H, T, S)
    return AttendedTranslation(
        weights.mean(0).numpy(),
        [*readable(translator.source_tokenizer.tokens(source_ids[:-1])), "end"],
        [*readable(translator.target_tokenizer.tokens(output)), "end"],
    )


@torch.no_grad()
def relabelled_images(run: Path) -> RelabelledImages:
    """A test image of each of the first classes, and its latent decoded under every label."""
    opened = open_run(run, "cvae", train_cvae.Config)
    model = opened.load(train_cvae.build_model(opened.config, len(opened.data["class_names"])), CPU)
    splits = train_cvae.load_splits(opened.config)
    labels = splits.test.labels
    shown = torch.tensor([int((labels == k).nonzero()[0]) for k in labels.unique()[:N_IMAGES]])
    images, true = splits.test.images[shown], labels[shown]
    targets = train_cvae.draw_targets(model, images, opened.config, Stream.TEST_PIXELS)
    names = splits.class_names[:N_LABELS]
    outputs = []
    for k in range(len(names)):
        same_draw = seeded_generator(CPU, Stream.FIGURES, opened.config.seed, 0)  # of the latent, for all labels
        outputs.append(relabelled(model, targets, true, torch.full_like(true, k), same_draw))
    return RelabelledImages(images, torch.stack(outputs, 1), names)


def segmented_pictures(run: Path) -> SegmentedPictures:
    """Test pictures with their masks, as the run kept them."""
    kept = read_run(run)
    shown = torch.linspace(0, len(kept.images) - 1, min(N_PICTURES, len(kept.images))).round().long()
    arrays = (kept.images, kept.true_masks, kept.predicted_masks)
    return SegmentedPictures(*(torch.from_numpy(array)[shown] for array in arrays))


def main(
    translation: Annotated[PathFlag, tyro.conf.arg(help="run of train_translation.py")],
    cvae: Annotated[PathFlag, tyro.conf.arg(help="run of train_cvae.py")],
    unet: Annotated[PathFlag, tyro.conf.arg(help="run of train_unet.py")],
    sentence: Annotated[str, tyro.conf.arg(help="what is translated; without: a test sentence")] = "",
    output: Annotated[PathFlag, tyro.conf.arg(help="PNG file to write")] = "showcase.png",
) -> None:
    """Write one PNG of what three finished runs make of their test sets."""
    try:
        write_showcase(
            Path(output),
            attended_translation(Path(translation), sentence),
            relabelled_images(Path(cvae)),
            segmented_pictures(Path(unet)),
        )
    except (UsageError, DataError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(output)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
