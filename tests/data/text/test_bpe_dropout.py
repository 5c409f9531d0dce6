import gzip
import itertools
import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.text.bpe_dropout import BPEDropout
from data.text.tokenization import UNK_ID, TextTokenizer

EUROPARL = Path(__file__).parents[4] / "shared" / "data" / "text" / "europarl7_short_lc.en-it.it.gz"

TEXTS = [
    f"{article} {noun} {verb}, {adverb}!"
    for article in ("il", "la", "un", "quella", "l'8")
    for noun in ("gatto", "casa", "città", "gattino", "banana", "aaaaaa")
    for verb in ("dorme", "dormiva", "parte", "partiva")
    for adverb in ("spesso", "raramente", "lentamente")
]
UNSEEN = ["", " ", "漢字", "gatto漢字gatto漢", "a漢 字b", "gattissimo lentissimo (3:15)", "IL GATTO"]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.train(TEXTS, "bpe", 90)


@pytest.mark.parametrize("dropout", [0, 1e-15])
def test_without_dropout_it_is_the_tokenizer(tokenizer, dropout):
    texts = UNSEEN + TEXTS
    assert BPEDropout(tokenizer, dropout).encode(texts, np.random.default_rng(0)) == tokenizer.encode(texts)


def test_full_dropout_gives_characters(tokenizer):
    encoded = BPEDropout(tokenizer, 1).encode(TEXTS, np.random.default_rng(0))
    pieces = [[tokenizer.backend.id_to_token(i) for i in ids] for ids in encoded]
    assert pieces == [list("▁" + text.replace(" ", "▁")) for text in TEXTS]


def test_runs_of_unknown_characters_are_one_unknown(tokenizer):
    (ids,) = BPEDropout(tokenizer, 1).encode(["漢字a漢字"], np.random.default_rng(0))
    assert [i for i in ids if i == UNK_ID] == [UNK_ID, UNK_ID] and len(ids) == 4


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_every_segmentation_spells_the_text_and_is_replayed_by_the_seed(tokenizer, dropout):
    encoder = BPEDropout(tokenizer, dropout)
    encoded = encoder.encode(TEXTS, np.random.default_rng(3))
    assert tokenizer.decode(encoded) == TEXTS
    assert encoded != tokenizer.encode(TEXTS)
    assert encoder.encode(TEXTS, np.random.default_rng(3)) == encoded  # now with a warm cache
    assert BPEDropout(tokenizer, dropout).encode(TEXTS, np.random.default_rng(3)) == encoded
    assert encoder.encode(TEXTS, np.random.default_rng(4)) != encoded


def test_successive_calls_go_on_in_the_random_stream(tokenizer):
    encoder, rng = BPEDropout(tokenizer, 0.5), np.random.default_rng(0)
    assert encoder.encode(TEXTS, rng) != encoder.encode(TEXTS, rng)


def segmentation_chances(pieces: tuple[str, ...], ranks: dict, dropout: float) -> Counter:
    """Algorithm 1 of the paper by enumeration: at each step, every subset of the applicable merges may drop."""
    sites = [(ranks[pair], i) for i, pair in enumerate(itertools.pairwise(pieces)) if pair in ranks]
    chances: Counter = Counter()
    for dropped in itertools.product((True, False), repeat=len(sites)):
        chance = float(np.prod([dropout if d else 1 - dropout for d in dropped]))
        left = [site for site, d in zip(sites, dropped, strict=True) if not d]
        if not left:
            chances[pieces] += chance
            continue
        _, i = min(left)
        merged = (*pieces[:i], pieces[i] + pieces[i + 1], *pieces[i + 2 :])
        for outcome, rest in segmentation_chances(merged, ranks, dropout).items():
            chances[outcome] += chance * rest
    return chances


@pytest.mark.parametrize(("word", "dropout"), [("gatto", 0.1), ("banana", 0.3), ("aaaaaa", 0.6)])
def test_segmentations_have_the_chances_of_the_paper(tokenizer, word, dropout):
    merges = json.loads(tokenizer.to_json())["model"]["merges"]
    ranks = {tuple(pair): rank for rank, pair in enumerate(merges)}
    expected = segmentation_chances(tuple("▁" + word), ranks, dropout)
    assert len(expected) > 5
    n = 20000
    encoded = BPEDropout(tokenizer, dropout).encode([word] * n, np.random.default_rng(0))
    seen = Counter(tuple(tokenizer.backend.id_to_token(i) for i in ids) for ids in encoded)
    assert set(seen) <= set(expected)
    for outcome, chance in expected.items():
        standard_deviation = (n * chance * (1 - chance)) ** 0.5
        assert abs(seen[outcome] - n * chance) < 5 * standard_deviation + 3, outcome


@pytest.mark.parametrize("kind", ["unigram", "word"])
def test_other_kinds_are_refused(kind):
    with pytest.raises(DataError, match=kind):
        BPEDropout(TextTokenizer.train(TEXTS, kind, 90), 0.1)


@pytest.mark.parametrize("dropout", [-0.1, 1.1, float("nan")])
def test_dropout_is_a_probability(tokenizer, dropout):
    with pytest.raises(DataError, match="between 0 and 1"):
        BPEDropout(tokenizer, dropout)


@pytest.mark.skipif(not EUROPARL.exists(), reason="the Europarl file is not here")
def test_real_text_is_equal_and_fast():
    with gzip.open(EUROPARL, "rt", encoding="utf-8", newline="\n") as lines:
        texts = [next(lines) for _ in range(15000)]
    tokenizer = TextTokenizer.train(texts, "bpe", 4000)
    assert BPEDropout(tokenizer, 1e-15).encode(texts, np.random.default_rng(0)) == tokenizer.encode(texts)
    n_words = sum(len(text.split()) for text in texts)
    start = time.process_time()
    BPEDropout(tokenizer, 0.1).encode(texts, np.random.default_rng(0))
    assert (time.process_time() - start) / n_words < 40e-6  # seconds; about 8e-6 where nothing else runs


def test_a_word_of_many_letters_takes_no_square_of_its_length(tokenizer):
    start = time.process_time()
    for dropout in (0.0, 0.1):
        (ids,) = BPEDropout(tokenizer, dropout).encode(["a" * 30_000], np.random.default_rng(0))
        assert tokenizer.decode([ids]) == ["a" * 30_000]
    assert time.process_time() - start < 20
