"""`--to onnx`: graphs for onnxruntime and other engines, with all that stands around the net inside them.

Images go in as bytes, (B, 3, H, W) uint8, and are normalised in the graph; a U-Net pads them to a size that it can
halve and cuts its logits back. The names of classes, the run's image size and the rest of config.json are in the
graph's metadata and beside it. A Transformer is two graphs: the encoder, run once, and a decoder's step with its
cache. All take any batch, and any size or length where the net does.

L layers, B rows, H heads, S source positions, t target positions so far, K width of a head, V words.
"""

import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

from data.text.tokenization import BOS_ID, PAD_ID
from models.decoding import length_bound
from models.generative_model import GenerativeModel
from models.test_time_augmentation import Views, logits_over_views
from models.transformer import Transformer
from models.unet import UNet
from tools.exporting.comparison import Difference, largest_difference
from tools.exporting.trained_model import TrainedModel
from tools.pretrained.cvae import pictures
from tools.pretrained.folder import CONFIG
from training.errors import UsageError

LIMIT = 1e-3  # of logits, log-probabilities and pictures
MODEL, ENCODER, STEP = "model.onnx", "encoder.onnx", "decoder_step.onnx"
N_TRACED = 2  # rows of the example that a graph is traced with

BATCH, HEIGHT, WIDTH = Dim("batch"), Dim("height"), Dim("width")
SOURCE_LENGTH, PAST_LENGTH = Dim("source_length"), Dim("past_length")


# --- what the graphs compute


class Normalised(nn.Module):
    """A net of normalised images, for images (B, 3, H, W) uint8."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, description: dict[str, Any]):
        super().__init__()
        self.net = net
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(description[name])[:, None, None])

    def normalise(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


class ClassifierGraph(Normalised):
    """images (B, 3, S, S) uint8 -> logits (B, K), over the views that the run was tested with."""

    def __init__(self, net: nn.Module, description: dict[str, Any]):
        super().__init__(net, description)
        self.views: Views = description["views"]

    def forward(self, images: Tensor) -> Tensor:
        return logits_over_views(self.net, self.normalise(images), self.views)


class SegmenterGraph(Normalised):
    """images (B, 3, H, W) uint8 of any size -> logits (B, 1 or K, H, W)."""

    net: UNet

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        # As UNet.padding, in a form whose halves the exporter can see through.
        multiple = 2**self.net.depth
        padded_height = (height + multiple - 1) // multiple * multiple
        padded_width = (width + multiple - 1) // multiple * multiple
        top, left = (padded_height - height) // 2, (padded_width - width) // 2
        rows = (torch.arange(padded_height) - top).clamp(0, height - 1)
        columns = (torch.arange(padded_width) - left).clamp(0, width - 1)
        x = self.normalise(images).index_select(2, rows).index_select(3, columns)
        return self.net.logits_of_padded(x)[:, :, top : top + height, left : left + width]


class SamplerGraph(nn.Module):
    """labels (B,) int64, noise (B, n_noise) standard normals -> pictures (B, C, S, S) in 0..1."""

    def __init__(self, model: GenerativeModel):
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, noise: Tensor) -> Tensor:
        return pictures(self.model, labels, noise)


class TransformerGraph(nn.Module):
    """What both graphs of a Transformer hold."""

    positions: Tensor
    never: Tensor

    def __init__(self, model: Transformer, max_source_tokens: int):
        super().__init__()
        self.model = model
        self.register_buffer("positions", model.positions(length_bound(max_source_tokens)).detach())
        never = torch.zeros(len(model.output_weight))
        never[[PAD_ID, BOS_ID]] = -torch.inf
        self.register_buffer("never", never)

    def embed(self, table: nn.Embedding, tokens: Tensor, start: int) -> Tensor:
        return table(tokens) * math.sqrt(self.model.d_model) + self.positions[start : start + tokens.shape[1]]


class EncoderGraph(TransformerGraph):
    """source (B, S) int64, which ends in EOS -> keys and values of the decoder's layers (L, 2, B, H, S, K)."""

    def forward(self, source: Tensor) -> Tensor:
        model = self.model
        x = self.embed(model.source_embedding or model.target_embedding, source, 0)
        mask = model.source_mask(source)
        for layer in model.encoder_layers:
            x = layer(x, mask)
        x = model.encoder_norm(x)
        return torch.stack([torch.stack(layer.cross_attention.keys_values(x)) for layer in model._decoder_layers()])


class StepGraph(TransformerGraph):
    """One token of each row and the cache -> log-probabilities of the next ones (B, V), and the longer cache.

    tokens (B,), source (B, S) as the encoder had it and memory (L, 2, B, H, S, K) as it gave it, past
    (L, 2, B, H, t, K), at first with t = 0 -> (B, V), (L, 2, B, H, t + 1, K). The first token is BOS.
    """

    def forward(self, tokens: Tensor, source: Tensor, memory: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        model = self.model
        x = self.embed(model.target_embedding, tokens[:, None], past.shape[4])
        mask = model.source_mask(source)
        present: list[Tensor] = []

        def extended(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            """Of the layer whose turn it is."""
            present.append(torch.cat([past[len(present)], torch.stack([keys, values])], 3))
            return present[-1][0], present[-1][1]

        for i, layer in enumerate(model._decoder_layers()):
            x = layer.step(x, extended, (memory[i, 0], memory[i, 1]), mask)
        logits = F.linear(model.decoder_norm(x)[:, 0], model.output_weight)
        return (logits + self.never).log_softmax(-1), torch.stack(present)


# --- writing


def write(trained: TrainedModel, folder: Path) -> None:
    """Fill an empty folder. Raises UsageError for a model that there is no graph for."""
    description = trained.description
    metadata = {name: value if isinstance(value, str) else json.dumps(value) for name, value in description.items()}
    if trained.script == "translation":
        write_transformer(trained, folder, metadata)
    elif trained.script == "cvae":
        example = {name: tensor[:N_TRACED] for name, tensor in trained.inputs.items()}
        dynamic = {"labels": {0: BATCH}, "noise": {0: BATCH}}
        assert isinstance(trained.model, GenerativeModel)
        save_graph(SamplerGraph(trained.model), example, dynamic, ["pictures"], metadata, folder / MODEL)
    else:
        side = width = description["image_size"]
        of_images = {0: BATCH}
        if trained.script == "cifar":
            module: nn.Module = ClassifierGraph(trained.model, description)
        else:
            module = SegmenterGraph(trained.model, description)
            of_images |= {2: HEIGHT, 3: WIDTH}
            width = side + 2  # of a square the exporter takes both sides for one
        example = {"images": torch.zeros(N_TRACED, 3, side, width, dtype=torch.uint8)}
        save_graph(module, example, {"images": of_images}, ["logits"], metadata, folder / MODEL)
    for name, text in {**trained.texts, CONFIG: json.dumps(description, indent=1) + "\n"}.items():
        (folder / name).write_text(text, encoding="utf-8")


def write_transformer(trained: TrainedModel, folder: Path, metadata: dict[str, str]) -> None:
    model = trained.model
    if not isinstance(model, Transformer):
        raise UsageError(
            "torch's exporter fixes the length of sentences in an LSTM's graph: export it --to safetensors or hub"
        )
    most = trained.description["decoding"]["max_source_tokens"]
    encoder, step = EncoderGraph(model, most), StepGraph(model, most)
    source = trained.inputs["source"][:N_TRACED]
    with torch.no_grad():
        memory = encoder(source)
    example = {
        "tokens": torch.full((N_TRACED,), BOS_ID),
        "source": source,
        "memory": memory,
        "past": torch.zeros(*memory.shape[:4], 3, memory.shape[5]),
    }
    of_source = {0: BATCH, 1: SOURCE_LENGTH}
    save_graph(encoder, {"source": source}, {"source": of_source}, ["memory"], metadata, folder / ENCODER)
    dynamic = {
        "tokens": {0: BATCH},
        "source": of_source,
        "memory": {2: BATCH, 4: SOURCE_LENGTH},
        "past": {2: BATCH, 4: PAST_LENGTH},
    }
    save_graph(step, example, dynamic, ["log_probs", "present"], metadata, folder / STEP)


def save_graph(
    module: nn.Module,
    example: dict[str, Tensor],
    dynamic: dict[str, dict[int, Dim]],
    outputs: list[str],
    metadata: dict[str, str],
    path: Path,
) -> None:
    """Trace a module with an example of its inputs, by name, whose `dynamic` dimensions the graph leaves open."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns of torchvision, which nothing here needs
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is deprecated inside torch and onnxscript
            program = torch.onnx.export(
                module.eval(),
                kwargs=example,
                input_names=list(example),
                output_names=outputs,
                dynamic_shapes=dynamic,
                dynamo=True,
                verbose=False,
                external_data=False,
            )
    finally:
        logger.setLevel(level)
    assert program is not None
    program.model.metadata_props.update(metadata)
    program.save(str(path))


# --- checking


def differences(trained: TrainedModel, folder: Path) -> list[Difference]:
    """How far what onnxruntime computes is from the run's model, on shapes that were not traced."""
    if trained.script == "translation":
        return [difference_of_transformer(trained, folder)]
    session = open_graph(folder / MODEL)
    found = []
    for inputs in shapes_to_check(trained):
        (computed,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
        expected = trained.pretrained.outputs(**inputs)
        shape = "x".join(map(str, next(iter(inputs.values())).shape))
        name = f"the outputs of {next(iter(inputs))} {shape}"
        found.append(largest_difference(name, expected, torch.from_numpy(computed), LIMIT))
    return found


def shapes_to_check(trained: TrainedModel) -> list[dict[str, Tensor]]:
    """The inputs as they are, and the first alone; of a U-Net cut to odd sides."""
    alone = {name: tensor[:1] for name, tensor in trained.inputs.items()}
    if trained.script == "unet":
        alone["images"] = alone["images"][:, :, 3:, 8:].contiguous()
    return [trained.inputs, alone]


def difference_of_transformer(trained: TrainedModel, folder: Path) -> Difference:
    """The step graph reads the translations a token at a time, with its cache."""
    encoder, step = open_graph(folder / ENCODER), open_graph(folder / STEP)
    source, target = (trained.inputs[name].numpy() for name in ("source", "target"))
    (memory,) = encoder.run(None, {"source": source})
    past = np.zeros((*memory.shape[:4], 0, memory.shape[5]), dtype=np.float32)
    log_probs = []
    for tokens in target.T:
        inputs = {"tokens": tokens, "source": source, "memory": memory, "past": past}
        next_log_probs, past = step.run(None, inputs)
        log_probs.append(torch.from_numpy(next_log_probs))
    expected = trained.pretrained.outputs(**trained.inputs)
    return largest_difference("log-probabilities, step by step", expected, torch.stack(log_probs, 1), LIMIT)


def open_graph(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
