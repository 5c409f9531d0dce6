"""The README.md of a model on the hub: what it is, its numbers, samples, figures, use, settings and limits."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tools.exporting.trained_model import TrainedModel

N_SAMPLES = 5
EMBEDDED = {
    "phrasebook": "phrases made by code",
    "shapes": "shapes drawn by code",
    "digits": "digits drawn by code",
}
OF_THE_MACHINE = ("output_dir", "resume", "resume_changes", "tracker", "judge", "data_dir")


class Task(NamedTuple):
    """What the card says of a script's models."""

    pipeline_tag: str  # one of the hub's
    name: str
    metrics: dict[str, tuple[str, str]]  # of summary.json: the hub's name and ours in words
    figures: dict[str, str]  # file names and captions
    packages: str
    use: str  # Python


TASKS = {
    "translation": Task(
        "translation",
        "Translation",
        {
            "test/bleu": ("sacrebleu", "BLEU"),
            "test/chrf": ("chrf", "chrF"),
            "test/nll": ("loss", "negative log-likelihood, nats a token"),
        },
        {"bleu": "validation BLEU in training", "attention_1": "where the decoder looks for each token"},
        "torch numpy safetensors tokenizers",
        'model(["A sentence."])  # a list of translations',
    ),
    "cifar": Task(
        "image-classification",
        "Image classification",
        {
            "test/accuracy": ("accuracy", "accuracy"),
            "test/accuracy_views": ("accuracy", "accuracy over test-time views"),
            "test/loss": ("loss", "negative log-likelihood, nats"),
        },
        {"confusion_matrix": "which class is taken for which", "misclassified": "the surest mistakes"},
        "torch numpy safetensors pillow",
        'model(["picture.png"])  # of each file the probabilities of the classes',
    ),
    "unet": Task(
        "image-segmentation",
        "Image segmentation",
        {
            "test/dice": ("dice", "Dice over all pixels"),
            "test/iou": ("mean_iou", "IoU over all pixels"),
            "test/dice_views": ("dice", "Dice over test-time views"),
        },
        {"best_and_worst": "test pictures of the highest and of the lowest Dice", "scores": "scores in training"},
        "torch numpy safetensors pillow",
        'list(model(["picture.jpg"]))  # of each file a mask (H, W) of class numbers',
    ),
    "cvae": Task(
        "unconditional-image-generation",
        "Image generation for a label",
        {
            "test/bits_per_dim": ("bits_per_dim", "bits per dimension"),
            "test/elbo": ("elbo", "ELBO, nats an image"),
            "test/prior_hits": ("accuracy", "share of samples that a classifier takes for their label"),
        },
        {"prior_samples": "samples under each label", "relabelled": "one latent under every label"},
        "torch numpy safetensors",
        "model({label!r}, 10)  # ten pictures (10, C, S, S), from 0 to 1",
    ),
}


def model_card(trained: TrainedModel, package: str) -> ModelCard:
    """The card, with the metrics in its metadata. `package` is the one in the folder."""
    task, summary, config = TASKS[trained.script], trained.run.summary, trained.run.config
    measured = {name: summary[name] for name in task.metrics if name in summary}
    data_name = name_of_data(config)
    results = [
        EvalResult(
            task_type=task.pipeline_tag,
            dataset_type=config.dataset if on_the_hub(config) else "custom",
            dataset_name=data_name,
            dataset_split="test",
            metric_type=task.metrics[name][0],
            metric_name=task.metrics[name][1],
            metric_value=round(value, 5),
        )
        for name, value in measured.items()
    ]
    title = f"onecycle {trained.script} {config.recipe}"
    metadata = ModelCardData(
        language=list(config.languages) if trained.script == "translation" else None,
        library_name="pytorch",
        pipeline_tag=task.pipeline_tag,
        tags=["onecycle", trained.script, config.recipe],
        datasets=[config.dataset] if on_the_hub(config) else None,
        metrics=sorted({task.metrics[name][0] for name in measured}) or None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    sections = [
        f"---\n{metadata.to_yaml()}\n---",
        f"# {title}",
        what_it_is(trained, task, data_name),
        "## Results\n\n" + results_in_words(task, measured, data_name),
        *samples(trained),
        *shown_figures(trained, task),
        "## How to use it\n\n" + how_to_use(trained, task, package),
        "## How it was trained\n\n" + how_it_was_trained(trained),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in limits(trained)),
    ]
    return ModelCard("\n\n".join(sections) + "\n")


def on_the_hub(config: Any) -> bool:
    """Whether the run's data are those of the hub that its config names."""
    return "/" in config.dataset and not config.data_dir and not getattr(config, "train_files", ())


def name_of_data(config: Any) -> str:
    """The data in a few words, without the folders of the machine that they lie on."""
    if files := getattr(config, "train_files", ()):
        return ", ".join(Path(file).name for file in files)
    if config.data_dir:
        return f"{config.dataset}, read from the folder {Path(config.data_dir).resolve().name}"
    if config.dataset in EMBEDDED:
        return EMBEDDED[config.dataset]
    return config.dataset


def what_it_is(trained: TrainedModel, task: Task, data_name: str) -> str:
    n_parameters = sum(parameter.numel() for parameter in trained.model.parameters())
    text = f"{task.name}: a model of {n_parameters:,} parameters, trained from scratch on {data_name}."
    if trained.script == "translation":
        source, target = trained.run.config.languages
        return f"{text} From {source} to {target}."
    side, names = trained.description["image_size"], trained.description["class_names"]
    return f"{text} Images of {side}x{side} pixels, {len(names)} classes: {', '.join(names[:20])}" + (
        ", .." if len(names) > 20 else "."
    )


def results_in_words(task: Task, measured: dict[str, float], data_name: str) -> str:
    if not measured:
        return "The run has not measured any on a test split."
    rows = "\n".join(f"| {task.metrics[name][1]} | {value:.4g} |" for name, value in measured.items())
    head = "| metric | value |\n|---|---|"
    return f"On the test split of {data_name}, which was read once, at the end.\n\n{head}\n{rows}"


def samples(trained: TrainedModel) -> list[str]:
    """Of a translation run some test sentences, their translations and references."""
    folder = trained.run.folder / "translations"
    paths = [folder / f"test.{kind}.txt" for kind in ("src", "hyp", "ref")]
    if trained.script != "translation" or not all(path.is_file() for path in paths):
        return []
    columns = [path.read_text(encoding="utf-8").splitlines() for path in paths]
    rows = list(zip(*columns, strict=True))
    rows = rows[:: max(1, len(rows) // N_SAMPLES)][:N_SAMPLES]
    lines = [in_a_row(row) for row in [("source", "translation", "reference"), ("---",) * 3, *rows]]
    return ["## Samples\n\nEvenly spaced in the test split, not picked.\n\n" + "\n".join(lines)]


def in_a_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


def figures_shown(trained: TrainedModel) -> list[Path]:
    """The figures of the run that the card shows, those that there are."""
    paths = [trained.run.folder / "figures" / f"{name}.png" for name in TASKS[trained.script].figures]
    return [path for path in paths if path.is_file()]


def shown_figures(trained: TrainedModel, task: Task) -> list[str]:
    shown = [f"![{task.figures[path.stem]}](figures/{path.name})" for path in figures_shown(trained)]
    captions = [f"*{task.figures[path.stem]}*" for path in figures_shown(trained)]
    pairs = [f"{picture}\n\n{caption}" for picture, caption in zip(shown, captions, strict=True)]
    return ["## Figures\n\n" + "\n\n".join(pairs)] if pairs else []


def how_to_use(trained: TrainedModel, task: Task, package: str) -> str:
    call = task.use
    if trained.script == "cvae":
        call = call.format(label=trained.description["class_names"][0])
    return f"""The folder is all that it takes: `pip install {task.packages}`, and

```python
import sys

folder = "."  # where this file lies; or huggingface_hub.snapshot_download("USER/NAME")
sys.path.insert(0, folder)
from {package} import from_pretrained

model = from_pretrained(folder)
{call}
```

In a clone of the project: `from tools.pretrained.{trained.script} import from_pretrained`."""


def how_it_was_trained(trained: TrainedModel) -> str:
    summary = trained.run.summary
    facts = []
    if "train_seconds" in summary:
        facts.append(
            f"{summary['train_seconds'] / 60:.1f} minutes of training on {summary.get('num_processes', 1)} x "
            f"{summary.get('device', 'an unknown device')}, precision {summary.get('mixed_precision', 'unknown')}"
        )
    if versions := summary.get("versions"):
        facts.append(", ".join(f"{name} {version}" for name, version in versions.items()))
    if commit := summary.get("git_commit"):
        facts.append(f"commit {commit}")
    settings = {
        name: [Path(v).name for v in value] if name.endswith("_files") else value
        for name, value in dataclasses.asdict(trained.run.config).items()
        if name not in OF_THE_MACHINE
    }
    text = f"`train_{trained.script}.py {trained.run.config.recipe}` of onecycle. " + "; ".join(facts)
    listing = json.dumps(settings, indent=1, ensure_ascii=False)
    return f"{text}\n\n<details><summary>All settings</summary>\n\n```json\n{listing}\n```\n\n</details>"


def limits(trained: TrainedModel) -> list[str]:
    """What the model cannot do, from what is known of it."""
    config, description = trained.run.config, trained.description
    lines = []
    if config.dataset in EMBEDDED and not config.data_dir and not getattr(config, "train_files", ()):
        lines.append("Its data are made by code: it shows how a run comes out, and is of no use on real input.")
    if trained.script == "translation":
        lines.append("Sentences are translated one by one, without what stands around them.")
        lines.append(f"A sentence is cut after {description['decoding']['max_source_tokens']:,} tokens.")
        lines.append("What is unlike its training data is translated all the same, and often wrongly.")
        if config.lowercase:
            lines.append("All of its text is in lower case.")
    else:
        side = description["image_size"]
        sentences = {
            "cifar": f"A picture, seen at {side}x{side}, gets one of the classes, also one that shows none.",
            "unet": f"A picture is squeezed to {side}x{side} pixels before it is segmented: small things are lost.",
            "cvae": f"Pictures of {side}x{side} pixels, means over what a label allows: softer than real.",
        }
        lines.append(sentences[trained.script])
    lines.append("Beyond the numbers above nothing has been measured: neither bias nor robustness.")
    return lines
