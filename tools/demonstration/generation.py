"""The page's tab for conditional VAEs: pictures drawn for a label, and one picture under every label."""

import html
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import gradio
import torch
from PIL import Image
from torch import Tensor

from data.errors import DataError
from data.images.decoding import MODES, fitted
from data.images.drawn_digits import drawn_digits
from data.seeding import Stream, seeded_generator
from models.cvae_pictures import relabelled
from tools.demonstration.messages import told_in_a_line
from tools.demonstration.shown_run import ShownRun
from tools.demonstration.uploads import Upload, drawing_of_url, example_files, given, picture_input, png_url
from tools.sample import Sampler
from training.errors import UsageError

EVERY_LABEL = "every label"
N_OF_EACH, N_OF_ONE = 8, 40  # pictures drawn of each label, and of one that is chosen
MAX_SEED = 2**31 - 1
MAX_TEMPERATURE = 1.5
DIGIT_HEIGHT = 0.66  # of the picture's side: about that of the digits in MNIST and of those drawn by code
CANVAS = """<div class="canvas"><h4>Draw a digit</h4>
<canvas width="280" height="280"></canvas><button type="button">Clear</button></div>"""
FIRST_EXAMPLE = 4  # is on the canvas at first


# -- pictures ---------------------------------------------------------------------------------------------


def under_every_label(sampler: Sampler, pixels: Tensor, true: int) -> Tensor:
    """A picture (C, S, S) uint8 of class `true` under each of the K labels, its latent drawn once: (K, C, S, S)."""
    model, device = sampler.model, sampler.device
    images, labels = pixels[None].to(device), torch.tensor([true], device=device)
    targets = model.likelihood.targets(images, seeded_generator(device, Stream.TEST_PIXELS, 0))
    outputs = []
    for k in range(len(sampler.class_names)):
        same_draw = seeded_generator(device, Stream.FIGURES, 0, 0)  # of the latent, for all labels
        outputs.append(relabelled(model, targets, labels, torch.full_like(labels, k), same_draw))
    return torch.cat(outputs).cpu()


def centred_digit(drawing: Image.Image) -> Image.Image:
    """A drawing, white on black, as high as digits of the training and in the middle, grey.

    Raises DataError where all is black.
    """
    grey = drawing.convert("L")
    box = grey.getbbox()
    if box is None:
        raise DataError("nothing is drawn yet: draw with the mouse, or click an example")
    digit = grey.crop(box)
    side = round(max(digit.height, digit.width) / DIGIT_HEIGHT)
    square = Image.new("L", (side, side))
    square.paste(digit, ((side - digit.width) // 2, (side - digit.height) // 2))
    return square


def pictures_as_html(rows: Sequence[tuple[str, Tensor]]) -> str:
    """Rows of pictures (n, C, S, S) in 0..1, each row after its label."""
    shown = []
    for label, pictures in rows:
        urls = [png_url(_image(picture)) for picture in pictures]
        images = "".join(f'<img src="{url}" alt="{html.escape(label)}">' for url in urls)
        shown.append(f"<div><b>{html.escape(label)}</b><div>{images}</div></div>")
    return f'<div class="samples">{"".join(shown)}</div>'


def relabelled_as_html(given_picture: Tensor, outputs: Tensor, class_names: Sequence[str]) -> str:
    """The picture (C, S, S) uint8, then one picture a label, of (K, C, S, S) in 0..1."""
    cells = [("given", _image(given_picture / 255)), *zip(class_names, map(_image, outputs), strict=True)]
    figures = []
    for name, image in cells:
        name = html.escape(name)
        figures.append(f'<figure><img src="{png_url(image)}" alt="{name}"><figcaption>{name}</figcaption></figure>')
    return f'<div class="labels">{"".join(figures)}</div>'


def _image(picture: Tensor) -> Image.Image:
    """(C, S, S) in 0..1."""
    pixels = (255 * picture.clamp(0, 1)).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


# -- what the page calls ----------------------------------------------------------------------------------


@told_in_a_line
def _draw(runs: Sequence[ShownRun[Sampler]], label: str, temperature: float, seed: int | None) -> list[str]:
    if seed is None:
        raise UsageError(f"the seed is missing: give a whole number, 0 to {MAX_SEED:,}")
    shown = []
    for run in runs:
        names = run.tool.class_names if label == EVERY_LABEL else [label]
        n = N_OF_EACH if label == EVERY_LABEL else N_OF_ONE
        if label != EVERY_LABEL and label not in run.tool.class_names:
            shown.append(f'<p class="quiet">This run knows no {html.escape(label)}.</p>')
            continue
        shown.append(pictures_as_html([(name, run.tool(name, n, seed, temperature)) for name in names]))
    return shown


def _relabel(runs: Sequence[ShownRun[Sampler]], picture: Image.Image, label: str | None) -> list[str]:
    shown = []
    for run in runs:
        config, names = run.tool.config, run.tool.class_names
        if config.encoder_sees_label and label not in names:
            raise DataError("the encoder of this run reads the label too: say what the picture shows")
        pixels = torch.tensor(fitted(picture, config.image_size, MODES[config.channels]))
        true = names.index(label) if label in names else 0  # an encoder without a label reads the picture alone
        shown.append(relabelled_as_html(pixels, under_every_label(run.tool, pixels, true), names))
    return shown


@told_in_a_line
def _relabel_drawing(runs: Sequence[ShownRun[Sampler]], url: str | None, label: str | None) -> list[str]:
    return _relabel(runs, centred_digit(drawing_of_url(url)), label)


@told_in_a_line
def _relabel_upload(runs: Sequence[ShownRun[Sampler]], upload: Upload | None, label: str | None) -> list[str]:
    return _relabel(runs, given(upload).picture(), label)


def examples() -> list[Image.Image]:
    """A digit of each class, drawn by code, to click."""
    _, _, images, labels, names = drawn_digits(n_train=1, n_test=100)
    chosen = [int((labels == k).nonzero()[0]) for k in range(len(names))]
    return [Image.fromarray(images[i, 0].numpy()) for i in chosen]


# -- the page ---------------------------------------------------------------------------------------------


def add_tab(runs: Sequence[ShownRun[Sampler]]) -> None:
    """The tab's contents, in a Blocks context of Gradio."""
    gradio.Markdown("## What would it be under another label?")
    _add_relabelling(runs)
    gradio.Markdown("## New pictures of a label")
    _add_drawing(runs)


def _add_relabelling(runs: Sequence[ShownRun[Sampler]]) -> None:
    names = _all_labels(runs)
    all_digits = all(name.isdigit() for name in names) and all(run.tool.config.channels == 1 for run in runs)
    reads_labels = any(run.tool.config.encoder_sees_label for run in runs)
    with gradio.Row():
        with gradio.Column(scale=2, min_width=300):
            shown_label = names[FIRST_EXAMPLE] if all_digits else None
            true = gradio.Dropdown(names, value=shown_label, label="It shows", visible=reads_labels)
            if all_digits:
                digits = examples()
                picture, arrivals = _canvas(digits)
                relabel = partial(_relabel_drawing, runs)
                first = relabel(png_url(digits[FIRST_EXAMPLE]), shown_label)
            else:
                picture, arrivals = picture_input([])
                relabel = partial(_relabel_upload, runs)
                first = [""] * len(runs)
        with gradio.Column(scale=5, min_width=300):
            outputs = _result_columns(runs, first)
    for event in [*arrivals, true.input]:
        event(relabel, [picture, true], outputs, api_visibility="private")


def _add_drawing(runs: Sequence[ShownRun[Sampler]]) -> None:
    with gradio.Row():
        label = gradio.Dropdown([EVERY_LABEL, *_all_labels(runs)], value=EVERY_LABEL, label="Label")
        temperature = gradio.Slider(
            0, MAX_TEMPERATURE, 1, step=0.05, label="Temperature", info="lower: more typical, less varied"
        )
        seed = gradio.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, info="another draws others")
    draw = partial(_draw, runs)
    outputs = _result_columns(runs, draw(EVERY_LABEL, 1, 0))
    for event in (label.change, temperature.release, seed.change):
        event(draw, [label, temperature, seed], outputs, api_visibility="private", show_progress="minimal")


def _all_labels(runs: Sequence[ShownRun[Sampler]]) -> list[str]:
    return list(dict.fromkeys(name for run in runs for name in run.tool.class_names))


def _result_columns(runs: Sequence[ShownRun[Sampler]], first: Sequence[str]) -> list[gradio.HTML]:
    """A column for each run, with what it shows at first, as HTML."""
    outputs = []
    with gradio.Row():
        for run, shown in zip(runs, first, strict=True):
            with gradio.Column(min_width=300):
                gradio.HTML(run.heading())
                outputs.append(gradio.HTML(shown))
    return outputs


def _canvas(digits: Sequence[Image.Image]) -> tuple[gradio.HTML, list]:
    """A square to draw in, above digits to click; and what to call with what is to happen then."""
    urls = [png_url(digit) for digit in digits]
    script = Path(__file__).with_name("canvas.js").read_text(encoding="utf-8")
    canvas = gradio.HTML(urls[FIRST_EXAMPLE], html_template=CANVAS, js_on_load=script)
    shown = gradio.Dataset(
        components=[gradio.Image(visible=False)],
        samples=[[path] for path in example_files(digits)],
        type="index",
        label="Or take one",
        elem_classes=["digits"],
    )
    clicked = shown.click(lambda i: urls[i], [shown], [canvas], api_visibility="private")
    return canvas, [canvas.input, clicked.then]
