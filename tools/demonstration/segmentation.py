"""The page's tab for segmentation: a picture, and its mask over it, at any threshold."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import gradio
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.images.textured_shapes import textured_shapes
from figures.segmentation import mask_colors, overlay_masks
from tools.demonstration.messages import told_in_a_line
from tools.demonstration.shown_run import ShownRun
from tools.demonstration.uploads import Upload, given, picture_input
from tools.segment import Segmenter

MAX_SIDE = 1024  # pixels of what is shown: larger pictures are made smaller
SHOWN_SIDE = 512  # pixels: smaller pictures are enlarged to about
ALL_CLASSES = "all classes, the likeliest in each pixel"
N_EXAMPLES = 6


@dataclass(frozen=True)
class Predicted:
    """A picture (3, H, W) uint8, and the logits (1, K or 1, S, S) of its pixels at the size of the training."""

    pixels: Tensor
    logits: Tensor


def predicted(segmenter: Segmenter, picture: Image.Image) -> Predicted:
    """What the net makes of a picture, which is made smaller where it is larger than `MAX_SIDE`."""
    shown = picture.copy()
    shown.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BICUBIC)
    small = shown.resize((segmenter.image_size, segmenter.image_size), Image.Resampling.BICUBIC)
    pixels, inputs = (torch.tensor(np.asarray(p)).permute(2, 0, 1) for p in (shown, small))
    return Predicted(pixels, segmenter.logits(inputs[None], segmenter.config.views).cpu())


def mask_at(seen: Predicted, threshold: float, chosen: int | None) -> Tensor:
    """The mask (H, W) uint8 of class `chosen`, where its probability is above the threshold, or of all classes.

    Of all classes the likeliest stands in each pixel, at any threshold. Of two classes the second is `chosen`.
    """
    logits = F.interpolate(seen.logits, seen.pixels.shape[1:], mode="bilinear", antialias=True)[0]
    if chosen is None:
        return logits.argmax(0).to(torch.uint8)
    shares = logits[0].sigmoid() if len(logits) == 1 else logits.softmax(0)[chosen]
    return (shares > threshold).to(torch.uint8) * chosen


def drawn_mask(pixels: Tensor, mask: Tensor, n_classes: int) -> tuple[Image.Image, Image.Image]:
    """The picture (3, H, W) with its mask (H, W) over it, and the mask in the same colours."""
    factor = max(1, SHOWN_SIDE // max(mask.shape))  # before lines are drawn, so that they stay thin
    large, large_mask = (t.repeat_interleave(factor, -1).repeat_interleave(factor, -2) for t in (pixels, mask))
    overlay = overlay_masks(large[None], large_mask[None])[0].permute(1, 2, 0)
    palette = np.array(mask_colors(n_classes), np.uint8)
    return Image.fromarray(overlay.numpy()), Image.fromarray(palette[large_mask.numpy()])


def legend(mask: Tensor, class_names: Sequence[str]) -> str:
    """The classes that a mask holds but the first, with their colours and shares of the picture, as HTML."""
    colors = mask_colors(len(class_names))
    shares = [(k, float((mask == k).float().mean())) for k in range(1, len(class_names))]
    found = [
        f'<span><i style="background:rgb{colors[k]}"></i>{html.escape(class_names[k])} {share:.1%}</span>'
        for k, share in sorted(shares, key=lambda item: -item[1])
        if share > 0 or len(class_names) == 2
    ]
    return f'<div class="legend">{"".join(found) or "nothing but background"}</div>'


def _render(runs: Sequence[ShownRun[Segmenter]], threshold: float, chosen: str | None, *seen: Predicted) -> list:
    shown: list = []
    for run, prediction in zip(runs, seen, strict=True):
        if prediction is None:  # the slider was moved before there was a picture
            shown += [None, None, ""]
            continue
        names = run.tool.class_names
        number = names.index(chosen) if chosen in names else None
        mask = mask_at(prediction, threshold, 1 if len(names) == 2 else number)
        shown += [*drawn_mask(prediction.pixels, mask, len(names)), legend(mask, names)]
    return shown


@told_in_a_line
def _segment(
    runs: Sequence[ShownRun[Segmenter]], upload: Upload | None, threshold: float, chosen: str | None
) -> list:
    picture = given(upload).picture()
    seen = [predicted(run.tool, picture) for run in runs]
    return [*seen, *_render(runs, threshold, chosen, *seen)]


def examples(runs: Sequence[ShownRun[Segmenter]]) -> list[Image.Image]:
    """Pictures to click: those of the first run's test set that it kept, else shapes drawn by code."""
    kept = runs[0].folder / "test_predictions.npz"
    if kept.is_file():
        with np.load(kept, allow_pickle=False) as arrays:
            images = arrays["images"]
    else:
        images = textured_shapes(n_train=1, n_test=N_EXAMPLES)[1].images.numpy()
    return [Image.fromarray(image.transpose(1, 2, 0)) for image in images[:N_EXAMPLES]]


def add_tab(runs: Sequence[ShownRun[Segmenter]]) -> None:
    """The tab's contents, in a Blocks context of Gradio."""
    names = list(dict.fromkeys(name for run in runs for name in run.tool.class_names[1:]))
    many = any(len(run.tool.class_names) > 2 for run in runs)
    with gradio.Row():
        with gradio.Column(scale=2, min_width=300):
            upload, arrivals = picture_input(examples(runs))
            threshold = gradio.Slider(
                0,
                1,
                0.5,
                step=0.01,
                label="Threshold",
                info="lower: more pixels count as the class",
                visible=not many,
            )
            chosen = gradio.Dropdown([ALL_CLASSES, *names], value=ALL_CLASSES, label="Class", visible=many)
        states, outputs = [], []
        for run in runs:
            with gradio.Column(scale=3, min_width=300):
                gradio.HTML(run.heading())
                shown = gradio.HTML()
                with gradio.Row():
                    pictures = [
                        gradio.Image(
                            label=label,
                            interactive=False,
                            format="png",
                            buttons=["download", "fullscreen"],
                            min_width=220,
                        )
                        for label in ("Picture and mask", "Mask")
                    ]
                outputs += [*pictures, shown]
                states.append(gradio.State(None))
    segment, render = partial(_segment, runs), partial(_render, runs)
    inputs = [upload, threshold, chosen]
    private = {"api_visibility": "private"}
    for arrival in arrivals:
        arrival(segment, inputs, [*states, *outputs], **private)
    changes = {"inputs": [threshold, chosen, *states], "outputs": outputs, "show_progress": "hidden", **private}
    threshold.change(render, trigger_mode="always_last", **changes)
    chosen.change(render, **changes)
    chosen.change(lambda name: gradio.update(visible=name != ALL_CLASSES), [chosen], [threshold], **private)
