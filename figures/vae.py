"""The figures of a label-conditional VAE: what it draws under which label, and what its latent holds.

Everywhere images are (…, C, S, S), C = 1 (grey) or 3 (RGB), uint8 or floats of 0 to 1, on the CPU, and a label is
the index of its name in `class_names`. Of more than `MAX_CLASSES` classes, that many are shown and the title says
so.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from data.seeding import Stream, seeded_generator
from figures.curves import new_figure, save_png
from figures.images import SMALL_IMAGE, plot_image_grid
from models.cvae_pictures import drawn, interpolated, reconstructed, relabelled, wrong_labels
from models.generative_model import GenerativeModel

MAX_CLASSES = 20
MAX_POINTS = 5000  # of a latent map
N_COLUMNS = 10  # of grids that could have any number
TRUE_COLOR, GIVEN_COLOR = "tab:blue", "tab:red"
FRAME_COLOR, FRAME_WIDTH = (31, 119, 180), 4  # tab:blue; pixels
PAIR_MARGIN = 10  # pixels of white on the outer sides of a pair, which bring its two pictures together


# --- pictures ---


@torch.no_grad()
def write_pictures(
    folder: Path,
    model: GenerativeModel,
    images: Tensor,
    targets: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    seed: int,
) -> None:
    """Write the PNGs of what the model makes of images (N, C, S, S) uint8 with `targets` and labels (N,).

    wrong_labels, reconstructions, relabelled, interpolations and prior_samples; of the first 25 images. All are on
    the model's device. Titles say at what temperature pictures were drawn, if not at 1.
    """
    model.eval()
    n_classes, device = len(class_names), images.device
    images, targets, true = images[:25].cpu(), targets[:25], labels[:25]
    generator = seeded_generator(device, Stream.FIGURES, seed, 0)
    temperature = model.picture_temperature

    given = wrong_labels(true, n_classes, generator)
    outputs = relabelled(model, targets, true, given, generator).cpu()
    write_wrong_labels(
        folder / "wrong_labels.png", images, true.cpu(), given.cpu(), outputs, class_names, temperature
    )

    outputs = reconstructed(model, targets, true, generator).cpu()
    write_reconstructions(folder / "reconstructions.png", images, true.cpu(), outputs, class_names)

    under_each = []
    for k in range(n_classes):
        same_draw = seeded_generator(device, Stream.FIGURES, seed, 1)  # of the latent, for all labels
        under_each.append(relabelled(model, targets[:10], true[:10], torch.full_like(true[:10], k), same_draw))
    outputs = torch.stack(under_each, 1).cpu()
    write_relabelled(folder / "relabelled.png", images[:10], outputs, true[:10].cpu(), class_names, temperature)

    n_pairs = len(targets) // 2
    first, last = true[:n_pairs], true[-n_pairs:]
    outputs = interpolated(model, targets[:n_pairs], first, targets[-n_pairs:], last, n_steps=9).cpu()
    rows = [f"{class_names[a]} to {class_names[b]}" for a, b in zip(first.tolist(), last.tolist(), strict=True)]
    write_interpolations(folder / "interpolations.png", outputs[:8], rows[:8])

    of_each = torch.arange(n_classes, device=device).repeat_interleave(10)
    samples = drawn(model, of_each, generator).unflatten(0, (n_classes, 10)).cpu()
    write_prior_samples(folder / "prior_samples.png", samples, class_names, temperature)


def write_wrong_labels(
    path: Path,
    images: Tensor,
    true_labels: Tensor,
    given_labels: Tensor,
    outputs: Tensor,
    class_names: Sequence[str],
    temperature: float = 1.0,
) -> None:
    """Write a PNG of pairs: an image under its true label, and what the VAE makes of it under the label given.

    `images`, `outputs`: (P, C, S, S); `true_labels`, `given_labels`: (P,).

    Raises `ValueError` where the lengths differ, and where a label given is the true one.
    """
    _check_pairs(images, outputs, true_labels, given_labels)
    right = (true_labels == given_labels).nonzero()[:, 0].tolist()
    if right:
        raise ValueError(
            f"image {right[0]}: the label given, {class_names[int(given_labels[right[0]])]}, is the true one"
        )
    inputs = F.pad(_enlarge(images), (PAIR_MARGIN, 0), value=1.0)
    outputs = F.pad(_enlarge(outputs), (0, PAIR_MARGIN), value=1.0)
    n_pairs = max(1, min(len(images), N_COLUMNS // 2))  # in a row
    titles = [
        title
        for true, given in zip(true_labels.tolist(), given_labels.tolist(), strict=True)
        for title in (f"true: {class_names[true]}", f"given: {class_names[given]}")
    ]
    plot_image_grid(
        path,
        torch.stack([inputs, outputs], dim=1).flatten(0, 1),
        titles,
        n_columns=2 * n_pairs,
        title=f"{len(images)} test images with their true label, and each as the VAE draws it under a wrong label"
        + _temperature_note(temperature),
        column_labels=["input", "output"] * n_pairs,
        colors=[TRUE_COLOR, GIVEN_COLOR] * len(images),
    )


def write_reconstructions(
    path: Path, images: Tensor, labels: Tensor, outputs: Tensor, class_names: Sequence[str]
) -> None:
    """Write a PNG of test images, each above what the VAE makes of it under its true label.

    `images`, `outputs`: (P, C, S, S); `labels`: (P,). Raises `ValueError` where the lengths differ.
    """
    _check_pairs(images, outputs, labels)
    n_columns = min(N_COLUMNS, max(1, len(images)))
    missing = -len(images) % n_columns  # white pictures fill the last row, for the outputs to begin a new one
    names = [f"true: {class_names[label]}" for label in labels.tolist()] + [""] * missing
    rows = [
        F.pad(_to_float(each), (0, 0, 0, 0, 0, 0, 0, missing), value=1.0).unflatten(0, (-1, n_columns))
        for each in (images, outputs)
    ]
    titles = []
    for start in range(0, len(names), n_columns):
        titles += names[start : start + n_columns] + [""] * n_columns
    plot_image_grid(
        path,
        torch.stack(rows, dim=1).flatten(0, 2),
        titles,
        n_columns=n_columns,
        title="Test images (above) and their reconstructions under the true label (below)",
        row_labels=["input", "output"] * (len(names) // n_columns),
    )


def write_prior_samples(path: Path, samples: Tensor, class_names: Sequence[str], temperature: float = 1.0) -> None:
    """Write a PNG of what the VAE draws from the prior: a row for each class, its samples beside each other.

    `samples`: (K, M, C, S, S), `samples[k]` drawn under label k. Raises `ValueError` where K differs from the
    number of names.
    """
    _check_classes(len(samples), class_names)
    shown = range(min(len(class_names), MAX_CLASSES))
    plot_image_grid(
        path,
        samples[: len(shown)].flatten(0, 1),
        None,
        n_columns=samples.shape[1],
        title="Samples from the prior under each label"
        + _shown_note(shown, class_names)
        + _temperature_note(temperature),
        row_labels=[class_names[label] for label in shown],
    )


def write_relabelled(
    path: Path,
    images: Tensor,
    outputs: Tensor,
    true_labels: Tensor,
    class_names: Sequence[str],
    temperature: float = 1.0,
) -> None:
    """Write a PNG with a row for each image: the image, then its one latent decoded under every label.

    `images`: (P, C, S, S); `outputs`: (P, K, C, S, S), `outputs[i, k]` the latent of image i under label k;
    `true_labels`: (P,), whose pictures are framed. Of many classes the true ones come first.

    Raises `ValueError` where the lengths differ, or K from the number of names.
    """
    _check_pairs(images, outputs, true_labels)
    _check_classes(outputs.shape[1], class_names)
    true_labels = true_labels.tolist()
    shown = sorted(list(dict.fromkeys([*true_labels, *range(len(class_names))]))[:MAX_CLASSES])
    rows = []
    for image, output, true_label in zip(images, outputs[:, shown], true_labels, strict=True):
        row = _enlarge(torch.cat([_to_float(image)[None], _to_float(output)])).expand(-1, 3, -1, -1)
        frames = torch.ones(len(row), 3, 1, 1)  # white, but around the true label
        if true_label in shown:
            frames[1 + shown.index(true_label)] = torch.tensor(FRAME_COLOR).div(255).view(3, 1, 1)
        inside = F.pad(torch.ones(row.shape[-2:], dtype=torch.bool), (FRAME_WIDTH,) * 4)
        rows.append(torch.where(inside, F.pad(row, (FRAME_WIDTH,) * 4), frames))
    title = "One latent under every label: the true one is framed" + _shown_note(shown, class_names)
    title += _temperature_note(temperature)
    plot_image_grid(
        path,
        torch.cat(rows) if rows else images,
        None,
        n_columns=1 + len(shown),
        title=title,
        row_labels=[f"true: {class_names[label]}" for label in true_labels],
        column_labels=["input", *(class_names[label] for label in shown)],
    )


def write_interpolations(path: Path, outputs: Tensor, row_labels: Sequence[str]) -> None:
    """Write a PNG of what the VAE draws on the way from one latent to another, a row for each pair.

    `outputs`: (R, T, C, S, S), T >= 2 equal steps with both ends; `row_labels`: R, such as "7" or "cat to dog".

    Raises `ValueError` where their numbers differ, or T is less than 2.
    """
    n_steps = outputs.shape[1]
    if n_steps < 2:
        raise ValueError(f"{n_steps} step: an interpolation has two ends")
    plot_image_grid(
        path,
        outputs.flatten(0, 1),
        None,
        n_columns=n_steps,
        title="From one latent to another in equal steps",
        row_labels=row_labels,
        column_labels=[f"{100 * step / (n_steps - 1):.3g}%" for step in range(n_steps)],
    )


def _to_float(images: Tensor) -> Tensor:
    """Floats of 0 to 1."""
    return images.float().clamp(0, 1) if images.is_floating_point() else images.float() / 255


def _enlarge(images: Tensor) -> Tensor:
    """(N, C, H, W) floats of 0 to 1, by a whole factor to about `SMALL_IMAGE` pixels; large ones are left."""
    factor = max(1, round(SMALL_IMAGE / max(images.shape[-2:])))
    return _to_float(images).repeat_interleave(factor, dim=-2).repeat_interleave(factor, dim=-1)


def _temperature_note(temperature: float) -> str:
    return "" if temperature == 1 else f" (spatial latents at a temperature of {temperature:g})"


def _shown_note(shown: Sequence[int], class_names: Sequence[str]) -> str:
    return f" ({len(shown)} of {len(class_names):,} classes)" if len(shown) < len(class_names) else ""


def _check_pairs(images: Tensor, *others: Tensor) -> None:
    lengths = [len(images), *map(len, others)]
    if len(set(lengths)) > 1:
        raise ValueError(f"images, outputs and labels differ in number: {', '.join(map(str, lengths))}")


def _check_classes(n_classes: int, class_names: Sequence[str]) -> None:
    if n_classes != len(class_names):
        raise ValueError(f"outputs under {n_classes} labels do not fit {len(class_names)} class names")


# --- latents ---


def write_latent_map(path: Path, latents: Tensor, labels: Tensor, class_names: Sequence[str]) -> None:
    """Write a PNG of the latents as points on their first two principal components, coloured by class.

    `latents`: (N, D) float; `labels`: (N,). The components are those of all N; of more than `MAX_POINTS`, evenly
    spaced ones are drawn. Of more than `MAX_CLASSES` classes the first are coloured, the others grey.

    Raises `ValueError` where the lengths differ or are zero.
    """
    if not len(latents) or len(latents) != len(labels):
        raise ValueError(f"{len(latents)} latents and {len(labels)} labels cannot be drawn")
    points, shares = _principal_components(latents)
    ids = torch.linspace(0, len(points) - 1, min(len(points), MAX_POINTS)).round().long()
    points, labels = points[ids], labels[ids]

    from matplotlib import color_sequences
    from matplotlib.lines import Line2D

    n_colors = min(len(class_names), MAX_CLASSES)
    palette = [*color_sequences["tab10" if n_colors <= 10 else "tab20"][:n_colors], (0.75, 0.75, 0.75)]
    names = list(class_names[:n_colors])
    if n_colors < len(class_names):
        names.append(f"{len(class_names) - n_colors:,} other classes")
    figure = new_figure(width=8 + 0.085 * max(map(len, names)), height=7)
    ax = figure.add_subplot()
    # One call for all classes, in the order of the data: the last class does not cover the others.
    size = 8 if len(points) > 1000 else 16
    x, y = points.T.numpy()
    ax.scatter(x, y, s=size, c=[palette[min(k, n_colors)] for k in labels.tolist()], linewidths=0)
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel(f"first principal component ({shares[0]:.1%} of the variance)")
    ax.set_ylabel(f"second principal component ({shares[1]:.1%})")
    ax.grid(alpha=0.3)
    drawn = f"{len(points):,} of {len(latents):,}" if len(points) < len(latents) else f"{len(points):,}"
    ax.set_title(
        f"Latents of {drawn} images: two principal components hold {sum(shares):.1%}\n"
        f"of the variance in {latents.shape[1]:,} units",
        fontsize=10,
    )
    handles = [
        Line2D([], [], linestyle="", marker="o", markersize=8, color=color)
        for color, _ in zip(palette, names, strict=False)
    ]
    legend = figure.legend(handles, names, loc="outside right upper", title="true label", fontsize=9)
    for text in legend.get_texts():
        text.set_parse_math(False)
    save_png(figure, path)


def _principal_components(latents: Tensor) -> tuple[Tensor, tuple[float, float]]:
    """The points (N, 2), each component's larger tail to the positive side, and its share of the variance."""
    centred = latents.detach().double() - latents.double().mean(0)
    centred = F.pad(centred, (0, max(0, 2 - centred.shape[1])))  # a single unit has no second component
    with torch.random.fork_rng(devices=[]):  # the algorithm is a randomised one
        torch.default_generator.manual_seed(0)  # of the CPU alone, which is what is put back
        _, singular_values, directions = torch.pca_lowrank(
            centred, q=min(10, *centred.shape), center=False, niter=6
        )
    points = F.pad(centred @ directions[:, :2], (0, max(0, 2 - directions.shape[1])))
    signs = (points**3).sum(0).sign()  # of no meaning in PCA: fixed for two runs to be compared
    shares = singular_values**2 / centred.square().sum().clamp_min(1e-30)
    first, second = [*shares[:2].tolist(), 0.0][:2]
    return points * torch.where(signs == 0, 1.0, signs), (first, second)


def plot_active_units(path: Path, kl_of_units: Tensor, threshold: float = 0.01) -> None:
    """Write a PNG of each latent unit's KL divergence from the prior as a bar, the largest first.

    `kl_of_units`: (D,), in nats, mean over a data set. Units above `threshold` nats are active, and counted in
    the title; the others have collapsed to the prior. The axis is logarithmic.

    Raises `ValueError` where there is no unit.
    """
    if kl_of_units.ndim != 1 or not len(kl_of_units):
        raise ValueError(f"the KL of shape {tuple(kl_of_units.shape)} is not (D,) of at least one unit")
    kl = kl_of_units.detach().double().sort(descending=True).values
    n_units, n_active = len(kl), int((kl > threshold).sum())
    bottom = threshold / 10  # what lies below has no bar
    edges = torch.arange(n_units + 1) + 0.5
    bars = kl.clamp_min(bottom).numpy()
    figure = new_figure(width=8, height=4.5)
    ax = figure.add_subplot()
    for start, end, color, label in (
        (0, n_active, "tab:blue", f"active: {n_active:,}"),
        (n_active, n_units, "0.7", f"collapsed: {n_units - n_active:,} (no bar below {bottom:g} nats)"),
    ):
        if start < end:
            ax.stairs(
                bars[start:end],
                edges[start : end + 1].numpy(),
                baseline=bottom,
                fill=True,
                color=color,
                label=label,
            )
    ax.axhline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold: {threshold:g} nats")
    ax.set_yscale("log")
    ax.set_ylim(bottom, 2 * max(float(bars[0]), threshold))
    ax.set_xlim(edges[0].item(), edges[-1].item())
    ax.locator_params(axis="x", integer=True)
    ax.yaxis.set_major_formatter(lambda nats, _position: f"{nats:g}")
    ax.set_xlabel("latent unit, by falling KL divergence")
    ax.set_ylabel("KL divergence from the prior (nats)")
    ax.set_title(
        f"{n_active:,} of {n_units:,} latent units are active (KL above {threshold:g} nats); "
        f"together {kl.sum():.1f} nats",
        fontsize=10,
    )
    ax.grid(axis="y", alpha=0.3)
    ax.legend(loc="upper right", fontsize=8)
    save_png(figure, path)
