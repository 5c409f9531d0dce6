"""What is exported: a finished run's model, all that stands beside it, and real inputs to check the export with."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

import tools.pretrained.cifar
import tools.pretrained.cvae
import tools.pretrained.translation
import tools.pretrained.unet
import train_cifar
import train_cvae
import train_translation
import train_unet
from data.errors import DataError
from data.images.drawn_digits import drawn_digits
from data.images.drawn_shapes import drawn_shapes
from data.images.textured_shapes import textured_shapes
from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID, TextTokenizer
from models.decoding import decode_in_batches
from models.hard_examples import HardExamples
from training.errors import UsageError
from training.finished_run import FinishedRun, open_run, script_of_run

CPU = torch.device("cpu")
N_CHECKED = 16  # sentences, images or pictures that an export is checked with
OF_TEST_SPLIT = "images of the run's test split"
LONGEST_CHECKED = 60  # tokens of such a sentence


class Pretrained(Protocol):
    """What the classes of tools/pretrained/ share."""

    model: Any  # of the class that its file names
    description: dict[str, Any]

    @property
    def outputs(self) -> Callable[..., Tensor]: ...


@dataclass(frozen=True)
class TrainedModel:
    """The model of a run, its averaged weights if it has some, on the CPU, for evaluation.

    `pretrained` holds it as tools/pretrained/<script>.py does, `description` is its config.json, `texts` are the
    files beside the weights.
    """

    run: FinishedRun
    pretrained: Pretrained
    texts: dict[str, str]
    make_inputs: Callable[[], tuple[dict[str, Tensor], str]]

    @cached_property
    def _inputs(self) -> tuple[dict[str, Tensor], str]:
        return self.make_inputs()

    @property
    def inputs(self) -> dict[str, Tensor]:
        """Those of `pretrained.outputs`, named as there."""
        return self._inputs[0]

    @property
    def inputs_are(self) -> str:
        """Where the inputs come from, in words."""
        return self._inputs[1]

    @property
    def script(self) -> str:
        return self.run.script

    @property
    def model(self) -> nn.Module:
        return self.pretrained.model

    @property
    def description(self) -> dict[str, Any]:
        return self.pretrained.description


def open_trained_model(run: str | Path) -> TrainedModel:
    """The model of a run folder (its best checkpoint is taken) or of one checkpoint.

    Raises UsageError where there is none.
    """
    script = script_of_run(run)
    openers: dict[str, Callable[[str | Path], TrainedModel]] = {
        "translation": open_translation,
        "cifar": open_cifar,
        "unet": open_unet,
        "cvae": open_cvae,
    }
    return openers[script](run)


def open_translation(run: str | Path) -> TrainedModel:
    opened = open_run(run, "translation", train_translation.Config, train_translation.OLD_RULES)
    config = opened.config
    sides = ("source", "target")
    tokenizers = [TextTokenizer.load(opened.checkpoint / f"{side}_tokenizer.json") for side in sides]
    sizes = [tokenizer.vocab_size for tokenizer in tokenizers]
    is_lstm = config.model == "lstm"
    names = train_translation.LSTM_OPTIONS if is_lstm else train_translation.TRANSFORMER_OPTIONS
    architecture = {
        "kind": config.model,
        "source_vocab_size": sizes[0],
        "target_vocab_size": sizes[1],
        "dropout": config.dropout,
        "tied_embeddings": config.tied_embeddings,
        "pad_id": PAD_ID,
        **{name: getattr(config, name) for name in names},
    }
    description = {
        "script": "translation",
        "architecture": architecture,
        "languages": list(config.languages),
        "decoding": {
            "beam_size": config.beam_size,
            "length_penalty": opened.summary.get("length_penalty", config.length_penalty),
            "length_normalization": config.length_normalization,
            "max_source_tokens": config.eval_max_len,
        },
    }
    model = opened.load(train_translation.build_model(config, *sizes), CPU)
    pretrained = tools.pretrained.translation.PretrainedTranslator(
        model, description, tokenizers[0], tokenizers[1], CPU
    )
    texts = {
        f"{side}_tokenizer.json": tokenizer.to_json() for side, tokenizer in zip(sides, tokenizers, strict=True)
    }

    def make_inputs() -> tuple[dict[str, Tensor], str]:
        sentences, origin = sentences_to_check(opened.folder, tokenizers[0])
        return translated_pairs(pretrained, sentences), origin

    return TrainedModel(opened, pretrained, texts, make_inputs)


def sentences_to_check(run_folder: Path, tokenizer: TextTokenizer) -> tuple[list[str], str]:
    """Some of the run's test sentences; where it translated none, sentences of its own vocabulary."""
    try:
        lines = (run_folder / "translations" / "test.src.txt").read_text(encoding="utf-8").split("\n")
    except OSError:
        lines = []
    lines = [line for line in lines if line.strip()]
    if lines:
        step = max(1, len(lines) // N_CHECKED)
        return lines[::step][:N_CHECKED], "sentences of the run's test split"
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(EOS_ID + 1, tokenizer.vocab_size, (N_CHECKED, 12), generator=generator)
    lengths = range(1, N_CHECKED + 1)
    drawn = [row[:length] for row, length in zip(ids.tolist(), lengths, strict=True)]
    return tokenizer.decode(drawn), "sentences drawn from the run's vocabulary"


def translated_pairs(
    pretrained: tools.pretrained.translation.PretrainedTranslator, sentences: list[str]
) -> dict[str, Tensor]:
    """The sentences with the model's own greedy translations, as tokens: source (B, S), target (B, T) from BOS."""
    source = [[*tokens[: LONGEST_CHECKED - 1], EOS_ID] for tokens in pretrained.source_tokenizer.encode(sentences)]
    target = decode_in_batches(
        pretrained.model,
        source,
        tools.pretrained.translation.SPECIAL,
        beam_size=1,
        length_penalty=1.0,
        batch_size=len(source),
        device=CPU,
    )
    rows = {"source": source, "target": [[BOS_ID, *tokens[:LONGEST_CHECKED]] for tokens in target]}
    return {name: pad_sequence([torch.tensor(row) for row in side], True, PAD_ID) for name, side in rows.items()}


def open_cifar(run: str | Path) -> TrainedModel:
    opened = open_run(run, "cifar", train_cifar.Config)
    config, data = opened.config, opened.data
    architecture: dict[str, Any] = {"kind": config.model, "n_classes": len(data["class_names"])}
    if config.model == "speednet":
        architecture["widths"] = list(config.speednet_widths)
    elif config.model == "resnet":
        architecture |= {"whitened": config.whitened, "activation": config.activation}
    description = {
        "script": "cifar",
        "architecture": architecture,
        **{name: data[name] for name in ("class_names", "image_size", "mean", "std")},
        "views": config.views,
    }
    model = opened.load(train_cifar.build_model(config, len(data["class_names"])), CPU)
    if isinstance(model, HardExamples):
        model = model.net  # the other has picked what this trained on
    pretrained = tools.pretrained.cifar.PretrainedClassifier(model, description, CPU)

    def make_inputs() -> tuple[dict[str, Tensor], str]:
        images = images_of_test(config, lambda: train_cifar.load_splits(config).test.images)
        if images is not None:
            return {"images": images}, OF_TEST_SPLIT
        draw = drawn_digits if config.dataset == "digits" else drawn_shapes
        images = draw(1, N_CHECKED, data["image_size"])[2].expand(-1, 3, -1, -1).contiguous()
        return {"images": images}, "drawn digits" if config.dataset == "digits" else "drawn shapes"

    return TrainedModel(opened, pretrained, {}, make_inputs)


def open_unet(run: str | Path) -> TrainedModel:
    opened = open_run(run, "unet", train_unet.Config)
    config, data = opened.config, opened.data
    n_classes = len(data["class_names"])
    names = ("width", "depth", "max_width", "downsampling", "upsampling", "norm", "dropout")
    names += ("encoder", "encoder_blocks")
    architecture = {
        "n_outputs": 1 if n_classes == 2 else n_classes,
        "deep_supervision": config.deep_supervision > 0,
        **{name: getattr(config, name) for name in names},
    }
    description = {
        "script": "unet",
        "architecture": architecture,
        **{name: data[name] for name in ("class_names", "image_size", "mean", "std")},
        "views": config.views,
    }
    if "mask_values" in data:
        description["mask_values"] = data["mask_values"]
    model = opened.load(train_unet.build_model(config, len(data["class_names"])), CPU)
    pretrained = tools.pretrained.unet.PretrainedSegmenter(model, description, CPU)

    def make_inputs() -> tuple[dict[str, Tensor], str]:
        images = images_of_test(config, lambda: train_unet.read_splits(config).test.images)
        if images is not None:
            return {"images": images}, OF_TEST_SPLIT
        return {"images": textured_shapes(1, N_CHECKED, data["image_size"])[1].images}, "drawn animals"

    return TrainedModel(opened, pretrained, {}, make_inputs)


def images_of_test(config: Any, read: Callable[[], Tensor]) -> Tensor | None:
    """Some images of the run's test split, evenly spaced, where the folder of its data is still there.

    None elsewhere: nothing is downloaded for it.
    """
    if not (config.data_dir and Path(config.data_dir).exists()):
        return None
    try:
        images = read()
    except (DataError, UsageError):  # the folder holds something else by now
        return None
    return images[:: max(1, len(images) // N_CHECKED)][:N_CHECKED].contiguous()


def open_cvae(run: str | Path) -> TrainedModel:
    opened = open_run(run, "cvae", train_cvae.Config)
    config, data = opened.config, opened.data
    n_classes = len(data["class_names"])
    names = (
        "channels",
        "image_size",
        "latent_dim",
        "spatial_latents",
        "width",
        "n_blocks",
        "patch_size",
        "label_dim",
        "conditioning",
        "encoder_sees_label",
        "fine_width",
        "sigma",
    )
    model = opened.load(train_cvae.build_model(config, n_classes), CPU)
    architecture = {
        "n_classes": n_classes,
        "n_outputs": model.likelihood.n_parameters(config.channels),
        **{name: getattr(config, name) for name in names},
        "likelihood": config.likelihood,
        "n_mixtures": config.n_mixtures,
        "picture_temperature": config.picture_temperature,
    }
    description = {
        "script": "cvae",
        "architecture": architecture,
        "class_names": data["class_names"],
        "image_size": config.image_size,
        "channels": config.channels,
        "n_noise": model.cvae.n_noise,
        "latent_dim": config.latent_dim,
    }
    # What has trained it beside the bound, a probe and a classifier, is no part of the model that is used.
    kept = tools.pretrained.cvae.build_model(architecture)
    kept.load_state_dict({n: w for n, w in model.state_dict().items() if n.startswith(("cvae.", "likelihood."))})
    pretrained = tools.pretrained.cvae.PretrainedSampler(kept, description, CPU)

    def make_inputs() -> tuple[dict[str, Tensor], str]:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(N_CHECKED, kept.cvae.n_noise, generator=generator)
        return {"labels": torch.arange(N_CHECKED) % n_classes, "noise": noise}, "labels with noise from the prior"

    return TrainedModel(opened, pretrained, {}, make_inputs)
