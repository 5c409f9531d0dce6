"""The page's tab for classification: a picture, its likeliest classes, and what each of six views says."""

import html
from collections.abc import Sequence
from functools import partial

import gradio
import torch
from PIL import Image
from torch import Tensor

from data.images.decoding import fitted
from data.images.drawn_digits import drawn_digits
from data.images.drawn_shapes import drawn_shapes
from models.test_time_augmentation import Views, shifted_views
from tools.classify import Classifier
from tools.demonstration.messages import told_in_a_line
from tools.demonstration.shown_run import ShownRun
from tools.demonstration.uploads import Upload, given, picture_input, png_url

N_CLASSES = 5  # that have a bar
N_EXAMPLES = 8
EMBEDDED = {"shapes": drawn_shapes, "digits": drawn_digits}  # data sets that need no files
VIEWS: dict[str, Views] = {"one view": "one", "with its mirror image": "mirror", "six views": "six"}
VIEW_NAMES = ("as it is", "shifted up left", "shifted down right")


def six_views(pixels: Tensor) -> Tensor:
    """A picture (3, S, S) uint8, shifted by a pixel in two ways, and the three mirrored: (6, 3, S, S) uint8."""
    image = pixels[None].float()
    views = torch.cat([image, *shifted_views(image)])
    return torch.cat([views, views.flip(-1)]).byte()


def views_as_html(views: Tensor, probabilities: Tensor, class_names: Sequence[str]) -> str:
    """Six views (6, 3, S, S) uint8 with the likeliest class of each, of probabilities (6, K)."""
    names = [*VIEW_NAMES, *(f"{name}, mirrored" for name in VIEW_NAMES)]
    cells = []
    for name, view, shares in zip(names, views, probabilities, strict=True):
        k = int(shares.argmax())
        url = png_url(Image.fromarray(view.permute(1, 2, 0).numpy()))
        cells.append(
            f'<figure><img src="{url}" alt="the picture {name}"><figcaption>{name}<br>'
            f"<b>{html.escape(class_names[k])}</b> {shares[k]:.1%}</figcaption></figure>"
        )
    return f'<h4>What each view says</h4><div class="views">{"".join(cells)}</div>'


@told_in_a_line
def _classify(runs: Sequence[ShownRun[Classifier]], upload: Upload | None, views: str) -> list:
    picture = given(upload).picture()
    shown: list = []
    for run in runs:
        classifier = run.tool
        names = classifier.class_names
        pixels = torch.tensor(fitted(picture, classifier.image_size, "RGB"))
        shares = classifier.probabilities(pixels[None], VIEWS[views])[0]
        six = six_views(pixels)
        shown.append(dict(zip(names, shares.tolist(), strict=True)))
        shown.append(views_as_html(six, classifier.probabilities(six), names))
    return shown


def examples(runs: Sequence[ShownRun[Classifier]]) -> list[Image.Image]:
    """Pictures to click, of different classes: test pictures of the first run's data set if it is embedded."""
    config = runs[0].tool.config
    draw = None if config.data_dir else EMBEDDED.get(config.dataset)
    if draw is None:
        return []
    _, _, images, labels, names = draw(n_train=1, n_test=100)
    chosen = [int((labels == k).nonzero()[0]) for k in range(len(names))][:N_EXAMPLES]
    return [Image.fromarray(images[i].expand(3, -1, -1).permute(1, 2, 0).numpy()) for i in chosen]


def add_tab(runs: Sequence[ShownRun[Classifier]]) -> None:
    """The tab's contents, in a Blocks context of Gradio."""
    with gradio.Row():
        with gradio.Column(scale=2, min_width=300):
            upload, arrivals = picture_input(examples(runs))
            own = next(name for name, views in VIEWS.items() if views == runs[0].tool.config.views)
            views = gradio.Radio(list(VIEWS), value=own, label="Averaged over")
        outputs: list = []
        for run in runs:
            with gradio.Column(scale=3, min_width=300):
                gradio.HTML(run.heading())
                outputs.append(gradio.Label(label="Likeliest classes", num_top_classes=N_CLASSES, buttons=[]))
                outputs.append(gradio.HTML(container=True, padding=True))
    classify = partial(_classify, runs)
    for arrival in [*arrivals, views.input]:
        arrival(classify, [upload, views], outputs, api_visibility="private")
