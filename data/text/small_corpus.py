"""Settings of a Transformer for a small corpus, of some 20,000 to 200,000 sentence pairs, from what it holds.

They are few pairs for a model of this kind, and few updates. So the smaller the corpus, the fewer its tokens, the
smaller its updates, and the longer it trains. The rule:

- **vocabulary**: one for each language, the target's embeddings being the output layer; as many merges as 100
  times the cube root of the characters of a side, and an entry for each character that is not rare; an alphabet of
  thousands finds room.
- **updates**: of 2,048 tokens below 100,000 pairs, of 4,096 from there on.
- **epochs**: 3,500 divided by the square root of the pairs, 8 to 30: twice the pairs, 1.4 times the updates.
- **dropout**: 0.2.
- **size**: width 256 below 100,000 pairs, 320 from there on; heads of 64, feed-forward blocks four times as wide.

The optimizer is Muon. It was tried on the validation split of Tatoeba, German to English: on 25,000 pairs, updates
of 2,048 tokens and vocabularies of up to 10,000 a language (results/small-corpus.txt), where by AdamW a dropout of
0.3 and 2,000 tokens were behind; on 55,000 pairs, updates of 2,048 and 4,096 tokens and vocabularies of up to
20,000 a language (results/transformer-muon.txt). On more than these nothing was tried.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from data.text.parallel_text import ParallelText

SMALLEST, LARGEST = 20_000, 200_000  # pairs that the rule is made for
MANY = 100_000  # pairs, from which the model and its updates are larger
MERGES = 100  # times the cube root of a side's characters
RARE = 1e-5  # share of the text; of the characters below it not each gets an entry
SHOWINGS = 3500  # epochs times the root of the pairs
HEAD = 64  # width of an attention head


@dataclass(frozen=True)
class CorpusSettings:
    """What the rule says of a corpus, by the names of the flags of train_translation.py."""

    tied_embeddings: Literal["output"]
    vocab_size: int  # of each language
    max_tokens: int
    epochs: int
    dropout: float
    d_model: int
    n_heads: int
    d_ff: int

    def flags(self) -> str:
        """As they are written on the command line."""
        return " ".join(f"--{name} {value}" for name, value in asdict(self).items())


def settings_for(train: ParallelText) -> CorpusSettings:
    """The settings for the training pairs `train`."""
    alphabet, n_characters = 0, 0.0
    for side in (train.sources, train.targets):
        characters: Counter[str] = Counter()
        for sentence in side:
            characters.update(sentence)
        n_characters += characters.total() / 2
        alphabet = max(alphabet, sum(count >= RARE * characters.total() for count in characters.values()))
    n_pairs = len(train)
    d_model = 256 if n_pairs < MANY else 320
    return CorpusSettings(
        tied_embeddings="output",
        vocab_size=_rounded(alphabet + MERGES * n_characters ** (1 / 3), 100),
        max_tokens=2048 if n_pairs < MANY else 4096,
        epochs=min(max(round(SHOWINGS / math.sqrt(n_pairs)), 8), 30),
        dropout=0.2,
        d_model=d_model,
        n_heads=d_model // HEAD,
        d_ff=4 * d_model,
    )


def _rounded(number: float, multiple: int) -> int:
    return max(round(number / multiple), 1) * multiple
