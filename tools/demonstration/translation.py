"""The page's tab for translation: a sentence, its translation, other ones, and where the model looked."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import gradio
import torch

from data.errors import DataError
from data.text.tokenization import BOS_ID, EOS_ID, readable
from models.alternatives import alternatives
from tools.demonstration.messages import told_in_a_line
from tools.demonstration.shown_run import ShownRun
from tools.translate import Translator
from train_translation import SPECIAL

MAX_CHARACTERS = 1000
MAX_BEAMS = 10
MOST_SHOWN = 40  # tokens along a side of the attention
N_EXAMPLES = 5


@dataclass(frozen=True)
class Alternative:
    """One translation, and the probability that the model gives it."""

    text: str
    probability: float


@dataclass(frozen=True)
class Translated:
    """Translations of a sentence, the best first, and the best one's attention (T, S) over the source's tokens."""

    alternatives: list[Alternative]
    attention: torch.Tensor
    source_tokens: list[str]
    target_tokens: list[str]


@torch.no_grad()
def translated(translator: Translator, text: str | None, beams: int) -> Translated:
    """A sentence's translations. Raises DataError where there is none, or too long a one."""
    sentence = " ".join((text or "").split())
    if not sentence:
        raise DataError("there is no text yet: write a sentence, or click an example")
    if len(sentence) > MAX_CHARACTERS:
        raise DataError(
            f"the text has {len(sentence):,} characters: translate at most {MAX_CHARACTERS:,} at a time"
        )
    (source_ids,) = translator.source_tokenizer.encode([sentence])
    most = translator.config.eval_max_len - 1  # the end mark comes on top
    if len(source_ids) > most:
        raise DataError(f"the text has {len(source_ids):,} tokens, and the model reads {most:,}: shorten it")
    source_ids.append(EOS_ID)
    source = torch.tensor([source_ids], device=translator.device)
    config = translator.config
    found = alternatives(
        translator.model,
        source,
        SPECIAL,
        beams,
        config.length_penalty,
        config.length_normalization,
    )
    texts = translator.target_tokenizer.decode([hypothesis.tokens for hypothesis in found], [sentence] * len(found))
    shown: dict[str, float] = {}
    for written, hypothesis in zip(texts, found, strict=True):  # other tokens may spell the same text
        shown[written] = shown.get(written, 0.0) + math.exp(hypothesis.log_prob)
    best = found[0].tokens
    weights = translator.model.cross_attention_weights(
        source, torch.tensor([[BOS_ID, *best]], device=translator.device)
    )
    return Translated(
        [Alternative(text, probability) for text, probability in shown.items()],
        weights[0].mean(0).float().cpu(),
        [*readable(translator.source_tokenizer.tokens(source_ids[:-1])), "end"],
        [*readable(translator.target_tokenizer.tokens(best)), "end"],
    )


def alternatives_as_html(shown: Sequence[Alternative]) -> str:
    """A list of translations, each with its probability as a bar."""
    if len(shown) < 2:
        return '<p class="quiet">The beam found no other translation.</p>'
    rows = "".join(
        f'<li><span class="share"><i style="width:{max(1, 100 * other.probability):.0f}%"></i></span>'
        f"<span>{_percent(other.probability)}</span><span>{html.escape(other.text) or '(nothing)'}</span></li>"
        for other in shown
    )
    return f'<h4>Alternatives, and how probable each is</h4><ol class="alternatives">{rows}</ol>'


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "&lt; 1%"


def attention_as_html(result: Translated) -> str:
    """A table with a row for each token of the translation: the darker a cell, the more it looked there."""
    if max(result.attention.shape) > MOST_SHOWN:
        return f'<p class="quiet">The sentence is too long to show its attention: {MOST_SHOWN} tokens fit.</p>'
    head = "".join(f"<th><span>{html.escape(token)}</span></th>" for token in result.source_tokens)
    rows = []
    for token, weights in zip(result.target_tokens, result.attention.tolist(), strict=True):
        cells = "".join(
            f'<td style="--share:{weight:.3f}" title="{html.escape(f"{token} ← {source}: {weight:.0%}")}"></td>'
            for source, weight in zip(result.source_tokens, weights, strict=True)
        )
        rows.append(f"<tr><th>{html.escape(token)}</th>{cells}</tr>")
    table = (
        f'<table class="attention"><thead><tr><td></td>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
    )
    return f'<h4>Where it looked for each token</h4><div class="attention-frame">{table}</div>'


@told_in_a_line
def _translate(runs: Sequence[ShownRun[Translator]], text: str | None, beams: int) -> list:
    shown: list = []
    for run in runs:
        result = translated(run.tool, text, beams)
        shown += [
            result.alternatives[0].text,
            alternatives_as_html(result.alternatives),
            attention_as_html(result),
        ]
    return shown


def examples(runs: Sequence[ShownRun[Translator]]) -> list[str]:
    """Sentences to click, of different lengths: of the first run's test set."""
    path = runs[0].folder / "translations" / "test.src.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    short = sorted({line for line in lines if 15 <= len(line) <= 90}, key=lambda line: (len(line), line))
    return short[:: max(1, len(short) // N_EXAMPLES)][:N_EXAMPLES]


def add_tab(runs: Sequence[ShownRun[Translator]]) -> None:
    """The tab's contents, in a Blocks context of Gradio."""
    beam_size = max(run.tool.config.beam_size for run in runs)
    with gradio.Row(equal_height=True):
        text = gradio.Textbox(
            label="Sentence",
            placeholder="Write a sentence, and press Enter",
            lines=1,
            max_lines=4,
            scale=5,
            min_width=300,
        )
        with gradio.Column(scale=1, min_width=180):
            beams = gradio.Slider(
                2,
                MAX_BEAMS,
                min(MAX_BEAMS, max(2, beam_size)),
                step=1,
                label="Beam size",
                info="alternatives that are kept",
            )
    button = gradio.Button("Translate", variant="primary")
    clicked = gradio.Examples([[sentence] for sentence in examples(runs)], [text], label="Examples")
    outputs: list = []
    with gradio.Row():
        for run in runs:
            with gradio.Column(min_width=320):
                gradio.HTML(run.heading())
                outputs.append(gradio.Textbox(label="Translation", lines=1, interactive=False, buttons=["copy"]))
                with gradio.Row():
                    for _ in ("alternatives", "attention"):
                        with gradio.Column(min_width=300):
                            outputs.append(gradio.HTML(container=True, padding=True))
    translate = partial(_translate, runs)
    gradio.on([button.click, text.submit], translate, [text, beams], outputs, api_visibility="private")
    clicked.load_input_event.then(translate, [text, beams], outputs, api_visibility="private")
