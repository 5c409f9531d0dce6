"""`--to ctranslate2`: a Transformer in the form of CTranslate2, a fast engine for CPUs and GPUs.

Weights go into the engine's own description of a Transformer (its spec API), layer for layer. Beside them lie the
run's tokenizers and decoding.json, so that `CTranslate2Translator` (and `tools.translate --engine ctranslate2`)
needs the folder alone.
"""

import json
import tempfile
from pathlib import Path
from typing import Any, Literal, Self

import ctranslate2
import numpy as np
import torch
from ctranslate2.specs import Activation, TransformerSpec
from torch import Tensor, nn

from data.text.tokenization import BOS_ID, EOS_ID, PAD_ID, SPECIAL_TOKENS, UNK_ID, TextTokenizer
from models.decoding import batches_within, length_bound
from models.transformer import DecoderLayer, EncoderLayer, MultiHeadAttention, Transformer
from tools.exporting.comparison import Difference
from tools.exporting.trained_model import TrainedModel, open_trained_model
from tools.pretrained.translation import translate_sentences
from training.errors import UsageError

Quantization = Literal["float32", "int8", "int8_float32"]

DECODING = "decoding.json"
NEVER = -60000.0  # added to the logits of tokens that are never predicted; still a number in fp16
# Of the log-probability of a token. Eight bits a weight move it, and unlikely tokens by more.
LIMITS: dict[Quantization, float] = {"float32": 1e-3, "int8": 0.5, "int8_float32": 0.5}
# The engine ends a sentence once beam_size x this many hypotheses have finished (Kasai et al., arXiv 2204.05424).
# At 1, its default, stumps that came second on the way stand for 75 of 1,000 test sentences; at 1.4 for 14, at 2
# for 1.
PATIENCE = 2.0


# --- writing


def write(trained: TrainedModel, folder: Path, quantization: Quantization) -> None:
    """Fill an empty folder. Raises UsageError for a model that CTranslate2 has no form for."""
    model = trained.model
    if not isinstance(model, Transformer):
        raise UsageError(
            "CTranslate2 has no LSTM with attention: export it --to safetensors or hub, or train a Transformer"
        )
    spec = transformer_spec(model, trained.description["decoding"]["max_source_tokens"])
    tokenizers = {name: TextTokenizer.from_json(text) for name, text in trained.texts.items()}
    spec.register_source_vocabulary(vocabulary(tokenizers["source_tokenizer.json"]))
    spec.register_target_vocabulary(vocabulary(tokenizers["target_tokenizer.json"]))
    spec.config.bos_token = spec.config.decoder_start_token = SPECIAL_TOKENS[BOS_ID]
    spec.config.eos_token, spec.config.unk_token = SPECIAL_TOKENS[EOS_ID], SPECIAL_TOKENS[UNK_ID]
    spec.config.add_source_bos, spec.config.add_source_eos = False, True
    spec.config.layer_norm_epsilon = 1e-5  # torch's
    spec.validate()
    spec.optimize(quantization=quantization)
    spec.save(str(folder))
    for name, text in trained.texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    decoding = {**trained.description["decoding"], "compute_type": quantization}
    (folder / DECODING).write_text(json.dumps(decoding, indent=1) + "\n", encoding="utf-8")


def vocabulary(tokenizer: TextTokenizer) -> list[str]:
    """A name for each id: as the vocabulary spells it."""
    return [tokenizer.backend.id_to_token(i) or "" for i in range(tokenizer.vocab_size)]


def transformer_spec(model: Transformer, max_source_tokens: int) -> TransformerSpec:
    """The model as CTranslate2 describes it, without vocabularies."""
    n_layers = len(model.encoder_layers), len(model.decoder_layers)
    pre_norm = isinstance(model.encoder_norm, nn.LayerNorm)
    n_heads = model._decoder_layers()[0].self_attention.n_heads
    spec = TransformerSpec.from_config(n_layers, n_heads, pre_norm=pre_norm, activation=Activation.RELU)
    positions = array(model.positions(length_bound(max_source_tokens)))
    for stack in (spec.encoder, spec.decoder):
        stack.position_encodings.encodings = positions.copy()
        stack.scale_embeddings = True
    spec.encoder.embeddings[0].weight = array((model.source_embedding or model.target_embedding).weight)
    spec.decoder.embeddings.weight = array(model.target_embedding.weight)
    spec.decoder.projection.weight = array(model.output_weight)
    bias = np.zeros(len(model.output_weight), dtype=np.float32)
    bias[[PAD_ID, BOS_ID]] = NEVER
    spec.decoder.projection.bias = bias
    for layer_spec, layer in zip(spec.encoder.layer, model.encoder_layers, strict=True):
        assert isinstance(layer, EncoderLayer)
        fill_attention(layer_spec.self_attention, layer.self_attention, layer.self_sublayer.norm)
        fill_feed_forward(layer_spec.ffn, layer)
    for layer_spec, layer in zip(spec.decoder.layer, model.decoder_layers, strict=True):
        assert isinstance(layer, DecoderLayer)
        fill_attention(layer_spec.self_attention, layer.self_attention, layer.self_sublayer.norm)
        fill_attention(layer_spec.attention, layer.cross_attention, layer.cross_sublayer.norm, over_itself=False)
        fill_feed_forward(layer_spec.ffn, layer)
    if pre_norm:
        fill_norm(spec.encoder.layer_norm, model.encoder_norm)
        fill_norm(spec.decoder.layer_norm, model.decoder_norm)
    return spec


def fill_attention(spec: Any, attention: MultiHeadAttention, norm: nn.Module, over_itself: bool = True) -> None:
    """Over itself query, key and value are one matrix; over the source the query stands alone."""
    d_model = attention.query.in_features
    query, key_value, output = (
        array(layer.weight) for layer in (attention.query, attention.key_value, attention.output)
    )
    query_bias = array(attention.query.bias)
    no_bias = np.zeros(2 * d_model, dtype=np.float32)  # our keys and values have none
    if over_itself:
        linear, last = spec.linear
        linear.weight, linear.bias = np.concatenate([query, key_value]), np.concatenate([query_bias, no_bias])
    else:
        of_query, of_key_value, last = spec.linear
        of_query.weight, of_query.bias = query, query_bias
        of_key_value.weight, of_key_value.bias = key_value, no_bias
    last.weight, last.bias = output, array(attention.output.bias)
    fill_norm(spec.layer_norm, norm)


def fill_feed_forward(spec: Any, layer: nn.Module) -> None:
    wider, _, _, narrower = layer.get_submodule("feed_forward").children()
    for linear, ours in ((spec.linear_0, wider), (spec.linear_1, narrower)):
        linear.weight, linear.bias = array(ours.get_parameter("weight")), array(ours.get_parameter("bias"))
    fill_norm(spec.layer_norm, layer.get_submodule("feed_forward_sublayer.norm"))


def fill_norm(spec: Any, norm: nn.Module) -> None:
    spec.gamma, spec.beta = array(norm.get_parameter("weight")), array(norm.get_parameter("bias"))


def array(tensor: Tensor) -> np.ndarray:
    """A copy: the engine quantises in place."""
    return tensor.detach().float().cpu().numpy().copy()


# --- checking


def differences(trained: TrainedModel, folder: Path, quantization: Quantization) -> list[Difference]:
    """How far log-probabilities of real translations, token by token, are from those of the run's model."""
    engine = CTranslate2Translator(folder)
    source, target = trained.inputs["source"], trained.inputs["target"]
    log_probs = trained.pretrained.outputs(**trained.inputs)
    largest = 0.0
    for row, (tokens, found) in enumerate(zip(target.tolist(), engine.scores(source, target), strict=True)):
        expected = [log_probs[row, i, token].item() for i, token in enumerate(followed_by(tokens))]
        assert len(expected) == len(found)
        largest = max(largest, *(abs(a - b) for a, b in zip(expected, found, strict=True)))
    return [Difference("a token's log-probability", largest, LIMITS[quantization])]


def followed_by(tokens: list[int]) -> list[int]:
    """BOS, words, PAD .. -> the words and EOS."""
    return [*words_of(tokens), EOS_ID]


def words_of(tokens: list[int]) -> list[int]:
    return [token for token in tokens if token not in (PAD_ID, BOS_ID, EOS_ID)]


# --- translating


class CTranslate2Translator:
    """An exported model: `CTranslate2Translator(folder)(["a sentence"]) -> ["una frase"]`."""

    def __init__(self, folder: str | Path, device: torch.device | None = None):
        folder = Path(folder)
        try:
            self.decoding = json.loads((folder / DECODING).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{folder} holds no model that `tools.export --to ctranslate2` wrote") from error
        self.source_tokenizer = TextTokenizer.load(folder / "source_tokenizer.json")
        self.target_tokenizer = TextTokenizer.load(folder / "target_tokenizer.json")
        self._names = [vocabulary(self.source_tokenizer), vocabulary(self.target_tokenizer)]
        self._ids = {name: i for i, name in enumerate(self._names[1])}
        # A small model gains more from two batches at a time than from two threads in each.
        self.engine = ctranslate2.Translator(
            str(folder),
            device="cuda" if device and device.type == "cuda" else "cpu",
            compute_type=self.decoding["compute_type"],
            inter_threads=torch.get_num_threads(),
            intra_threads=1,
        )

    @classmethod
    def of(cls, run: str | Path, quantization: Quantization, device: torch.device | None = None) -> Self:
        """The model of an exported folder as it is, or of a run, which is converted for the occasion."""
        if (Path(run) / DECODING).is_file():
            exported = cls(run, device)
            if quantization not in ("float32", exported.decoding["compute_type"]):
                raise UsageError(f"{run} was exported as {exported.decoding['compute_type']}: name its run instead")
            return exported
        with tempfile.TemporaryDirectory() as folder:
            write(open_trained_model(run), Path(folder), quantization)
            return cls(folder, device)  # all of it is in memory then

    def __call__(
        self,
        sentences: list[str],
        *,
        beam_size: int | None = None,
        length_penalty: float | None = None,
        batch_size: int = 64,
        max_tokens: int = 32768,
    ) -> list[str]:
        """Translations in the order of the sentences; an empty sentence stays empty.

        Beams and length penalty are those that the run was tested with, unless given. A sentence is cut after the
        run's `eval_max_len` tokens.
        """
        beam_size = self.decoding["beam_size"] if beam_size is None else beam_size
        penalty = self.decoding["length_penalty"] if length_penalty is None else length_penalty

        def search(sources: list[list[int]], numbers: list[int]) -> list[list[int]]:
            # Longest first, so that each batch has a bound on its length that suits all of it.
            sizes = [beam_size * (len(tokens) + length_bound(len(tokens))) for tokens in sources]
            answers: list[Any] = [None] * len(sources)
            for chosen in batches_within(sizes, batch_size, max_tokens):
                batch = [[self._names[0][i] for i in sources[k][:-1]] for k in chosen]  # the engine adds EOS
                waited_for = self.engine.translate_batch(
                    batch,
                    beam_size=beam_size,
                    length_penalty=penalty,
                    patience=PATIENCE,
                    num_hypotheses=beam_size,
                    return_scores=True,
                    max_input_length=0,
                    min_decoding_length=0,  # by default 1: our search may find that nothing is likeliest
                    max_decoding_length=length_bound(len(sources[chosen[0]])),
                    asynchronous=True,
                )
                for k, answer in zip(chosen, waited_for, strict=True):
                    answers[k] = answer
            found = [[self._ids[name] for name in best_hypothesis(answer.result(), penalty)] for answer in answers]
            # A batch shares its longest sentence's bound: a translation without an end is cut at its own.
            return [ids[: length_bound(len(tokens))] for ids, tokens in zip(found, sources, strict=True)]

        tokenizers = self.source_tokenizer, self.target_tokenizer
        return translate_sentences(sentences, *tokenizers, self.decoding["max_source_tokens"], search)

    def scores(self, source: Tensor, target: Tensor) -> list[list[float]]:
        """source (B, S), target (B, T) from BOS, padded -> log-probability of each word of a row and of EOS."""
        sides = [
            [[names[i] for i in words_of(row)] for row in rows.tolist()]
            for names, rows in zip(self._names, (source, target), strict=True)
        ]
        return [result.log_probs for result in self.engine.score_batch(*sides)]


def best_hypothesis(result: Any, length_penalty: float) -> list[str]:
    """The words of the hypothesis that our own search would take of a `TranslationResult` with scores.

    The engine divides a log-probability by the length with the end mark to the power of `length_penalty`, our
    search by the length without it, which favours longer ones.
    """

    def score(i: int) -> float:
        n_words = len(result.hypotheses[i])
        return result.scores[i] * ((n_words + 1) / max(n_words, 1)) ** length_penalty

    return result.hypotheses[max(range(len(result.hypotheses)), key=score)]
