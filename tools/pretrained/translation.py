"""A translation model from a folder that `tools.export` wrote: `from_pretrained(FOLDER)(["a sentence"])`.

Stands in the project and, copied, in the folder itself, so that the folder can be used alone.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID, TextTokenizer
from models.decoding import SpecialTokens, decode_in_batches
from models.lstm import Seq2SeqLSTM
from models.transformer import Transformer
from tools.pretrained.folder import load_model_weights, local_folder, read_description

SPECIAL = SpecialTokens(PAD_ID, begin=BOS_ID, end=EOS_ID)


class PretrainedTranslator:
    """A trained model with its tokenizers: sentences -> translations.

    `description` is config.json: the model's arguments, and how it is to decode.
    """

    def __init__(
        self,
        model: Transformer | Seq2SeqLSTM,
        description: dict[str, Any],
        source_tokenizer: TextTokenizer,
        target_tokenizer: TextTokenizer,
        device: torch.device,
    ):
        self.model, self.description, self.device = model.to(device).eval(), description, device
        self.source_tokenizer, self.target_tokenizer = source_tokenizer, target_tokenizer

    def __call__(
        self,
        sentences: list[str],
        beam_size: int | None = None,
        length_penalty: float | None = None,
        batch_size: int = 64,
    ) -> list[str]:
        """Translations in the order of the sentences; an empty sentence stays empty.

        A sentence is cut after the model's `max_source_tokens`. Beams and length penalty are those that the model
        was tested with, unless given.
        """
        decoding = self.description["decoding"]

        def search(sources: list[list[int]], numbers: list[int]) -> list[list[int]]:
            return decode_in_batches(
                self.model,
                sources,
                SPECIAL,
                beam_size=decoding["beam_size"] if beam_size is None else beam_size,
                length_penalty=decoding["length_penalty"] if length_penalty is None else length_penalty,
                length_normalization=decoding["length_normalization"],
                batch_size=batch_size,
                device=self.device,
            )

        tokenizers = self.source_tokenizer, self.target_tokenizer
        return translate_sentences(sentences, *tokenizers, decoding["max_source_tokens"], search)

    @torch.no_grad()
    def outputs(self, source: Tensor, target: Tensor) -> Tensor:
        """source (B, S), target (B, T) that begins with BOS -> log-probabilities of each next token (B, T, V).

        -inf at PAD and BOS, which are never predicted. An export is checked by these.
        """
        logits = self.model.logits(source.to(self.device), target.to(self.device)).float()
        logits[..., [PAD_ID, BOS_ID]] = -torch.inf
        return logits.log_softmax(-1).cpu()


def translate_sentences(
    sentences: list[str],
    source_tokenizer: TextTokenizer,
    target_tokenizer: TextTokenizer,
    max_source_tokens: int,
    search: Callable[[list[list[int]], list[int]], list[list[int]]],
) -> list[str]:
    """Translations in the order of the sentences; an empty sentence stays empty.

    `search(sources, numbers)` gives the target's tokens for those of the source, which end in EOS; the numbers are
    the places of these sentences among all. A source is cut after `max_source_tokens`, the end mark counted, and a
    line on stderr says of how many.
    """
    written = [i for i, sentence in enumerate(sentences) if sentence.strip()]
    sources = [sentences[i] for i in written]
    encoded = source_tokenizer.encode(sources)
    most = max_source_tokens - 1
    if n_cut := sum(len(tokens) > most for tokens in encoded):
        print(
            f"warning: {n_cut:,} of {len(sources):,} lines have more than {max_source_tokens:,} tokens: their "
            "beginning is translated",
            file=sys.stderr,
        )
    outputs = search([[*tokens[:most], EOS_ID] for tokens in encoded], written)
    translations = [""] * len(sentences)
    for i, translation in zip(written, target_tokenizer.decode(outputs, sources), strict=True):
        translations[i] = translation
    return translations


def build_model(architecture: dict[str, Any]) -> Transformer | Seq2SeqLSTM:
    """The untrained model: "kind" and the arguments of its class."""
    arguments = {name: value for name, value in architecture.items() if name != "kind"}
    kind: type[Transformer] | type[Seq2SeqLSTM] = Seq2SeqLSTM if architecture["kind"] == "lstm" else Transformer
    return kind(**arguments)


def from_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> PretrainedTranslator:
    """The model of a folder, or of a name on the hub. Raises DataError where there is none."""
    folder = local_folder(folder)
    description = read_description(folder, "translation")
    model = build_model(description["architecture"])
    load_model_weights(model, folder)
    source, target = (TextTokenizer.load(folder / f"{side}_tokenizer.json") for side in ("source", "target"))
    return PretrainedTranslator(model, description, source, target, torch.device(device))
