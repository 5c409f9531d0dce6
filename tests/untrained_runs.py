"""Run folders as finished runs leave them, but of models that were never trained: made in a moment.

Weights are random, and so are statistics and biases, which untrained nets have at 0 and 1.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

import train_cifar
import train_cvae
import train_translation
import train_unet
from data.text.phrasebook import phrasebook_splits
from data.text.tokenization import TextTokenizer


def translation_run(folder: Path, **settings) -> Path:
    """A run on the phrasebook, with a translated test split. Its BPE is joint, or of 200 and 150 tokens."""
    small = {"d_model": 32, "n_heads": 4, "d_ff": 48, "n_encoder_layers": 2, "n_decoder_layers": 3}
    config = dataclasses.replace(train_translation.RECIPES["demo"][1], **{**small, "eval_max_len": 64, **settings})
    sources, targets = (list(side) for side in zip(*phrasebook_splits()[2], strict=True))
    if config.tied_embeddings == "three-way":
        joint = TextTokenizer.train([*sources, *targets], "bpe", 200)
        tokenizers = [joint, joint]
    else:
        sides = ((sources, 200), (targets, 150))
        tokenizers = [TextTokenizer.train(texts, "bpe", size) for texts, size in sides]
    torch.manual_seed(0)  # what a test finds is found again
    model = train_translation.build_model(config, *(tokenizer.vocab_size for tokenizer in tokenizers))
    texts = {
        f"{side}_tokenizer.json": t.to_json() for side, t in zip(("source", "target"), tokenizers, strict=True)
    }
    written = {"src": sources[:40], "hyp": targets[:40], "ref": targets[:40]}
    (folder / "translations").mkdir(parents=True)
    for kind, lines in written.items():
        (folder / "translations" / f"test.{kind}.txt").write_text("".join(f"{line}\n" for line in lines))
    return write_run(folder, "translation", config, model, texts)


def cifar_run(folder: Path, **settings) -> Path:
    config = dataclasses.replace(train_cifar.RECIPES["demo"][1], **settings)
    names = ["circle", "square", "star"]
    data = {"class_names": names, "image_size": 32, "mean": [120.0, 110.0, 100.0], "std": [60.0, 61.0, 62.0]}
    torch.manual_seed(0)  # what a test finds is found again
    model = train_cifar.build_model(config, len(names))
    return write_run(folder, "cifar", config, model, {"data.json": json.dumps(data)})


def unet_run(folder: Path, n_classes: int = 2, **settings) -> Path:
    config = dataclasses.replace(train_unet.RECIPES["demo"][1], **{"width": 8, "depth": 2, **settings})
    names = ["background", "pet", "rim"][:n_classes]
    data = {"class_names": names, "image_size": 64, "mean": [120.0, 110.0, 100.0], "std": [60.0, 61.0, 62.0]}
    torch.manual_seed(0)  # what a test finds is found again
    model = train_unet.build_model(config, n_classes)
    return write_run(folder, "unet", config, model, {"data.json": json.dumps(data)})


def cvae_run(folder: Path, **settings) -> Path:
    config = dataclasses.replace(
        train_cvae.RECIPES["demo"][1], **{"spatial_latents": ((7, 2),), "picture_temperature": 0.5, **settings}
    )
    data = {"class_names": [str(k) for k in range(10)], "image_size": config.image_size}
    return write_run(folder, "cvae", config, train_cvae.build_model(config, 10), {"data.json": json.dumps(data)})


def write_run(folder: Path, script: str, config, model: nn.Module, texts: Mapping[str, str]) -> Path:
    """The folder, with one checkpoint that holds the model and the texts beside it."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point() and tensor.ndim <= 1:
            tensor.add_(0.2 * torch.randn(tensor.shape, generator=generator))
    checkpoint = folder / "checkpoints" / "checkpoint-7"
    checkpoint.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, checkpoint / "model.safetensors")
    state = {"step": 7, "script": script, "config": dataclasses.asdict(config)}
    for name, text in {**texts, "state.json": json.dumps(state)}.items():
        (checkpoint / name).write_text(text, encoding="utf-8")
    sealed = {
        path.name: (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(checkpoint.iterdir())
    }
    (checkpoint / "manifest.json").write_text(json.dumps(sealed))
    return folder
