import gzip
import hashlib
import os
import random
import subprocess
import sys
import time
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from data.errors import DataError
from data.text.bpe_dropout import BPEDropout
from data.text.tokenization import (
    BOS_ID,
    EOS_ID,
    MAX_WORD,
    PAD_ID,
    SPECIAL_TOKENS,
    UNK_ID,
    TextTokenizer,
    _with_long_words_cut,
)

ROOT = Path(__file__).parents[3]
EUROPARL = ROOT.parent / "shared" / "data" / "text" / "europarl7_short_lc.en-it.en.gz"

KINDS = ("bpe", "unigram", "word")
HARD = [
    "l'8 maggio, alle 3:15!",
    "Va-t'en !",
    "«Ciao» – disse.",
    "a  b\u00a0c\td",
    "10.000 € (circa) / 50%",
    "perche\u0301",
]
CORPUS = HARD + [
    f"{article} {noun} {verb} {adverb}."
    for article in ("il", "la", "un", "quella")
    for noun in ("gatto", "casa", "città", "gattino", "casetta")
    for verb in ("dorme", "dormiva", "parte", "partiva")
    for adverb in ("spesso", "raramente", "lentamente")
]


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_restores_the_normalised_text(kind):
    tokenizer = TextTokenizer.train(CORPUS, kind, 300)
    texts = ["", "  ", *CORPUS]
    ids = tokenizer.encode(texts)
    assert ids[:2] == [[], []]
    assert all(len(SPECIAL_TOKENS) <= i < tokenizer.vocab_size for sequence in ids for i in sequence)
    assert tokenizer.decode(ids) == [normalised(text) for text in texts]


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_unseen_words_of_known_characters_are_restored_too(kind):
    tokenizer = TextTokenizer.train(CORPUS, kind, 300)
    rng = random.Random(0)
    alphabet = sorted({c for text in CORPUS for c in normalised(text)})
    texts = ["".join(rng.choices(alphabet, k=40)) for _ in range(200)]
    assert tokenizer.decode(tokenizer.encode(texts)) == [normalised(text) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_lower_case(kind):
    tokenizer = TextTokenizer.train(CORPUS, kind, 300, lowercase=True)
    assert tokenizer.decode(tokenizer.encode(["IL Gatto DORME spesso."])) == ["il gatto dorme spesso."]
    assert TextTokenizer.from_json(tokenizer.to_json()).encode(["CITTÀ"]) == tokenizer.encode(["città"])


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_have_fixed_ids_and_no_text_yields_them(kind):
    tokenizer = TextTokenizer.train([*CORPUS, "<pad> <unk> <bos> <eos>"], kind, 300)
    assert [tokenizer.backend.token_to_id(token) for token in SPECIAL_TOKENS] == [PAD_ID, UNK_ID, BOS_ID, EOS_ID]
    (ids,) = tokenizer.encode(["<pad> <unk> <bos> <eos>"])
    assert min(ids) >= len(SPECIAL_TOKENS)
    framed = [BOS_ID, *ids, EOS_ID, PAD_ID, PAD_ID]
    assert tokenizer.decode([framed]) == ["<pad> <unk> <bos> <eos>"]


@pytest.mark.parametrize(("kind", "text"), [("bpe", "il ⁇ gat⁇to"), ("unigram", "il ⁇ gat⁇to"), ("word", "il ⁇ ⁇")])
def test_unknowns_leave_a_visible_mark(kind, text):
    tokenizer = TextTokenizer.train(CORPUS, kind, 300)
    assert tokenizer.decode(tokenizer.encode(["il 漢字 gatжжto"])) == [text]


def test_word_vocabulary_is_the_commonest_words():
    texts = ["b a b c", "b a d"]  # b 3, a 2, c 1, d 1
    entries = lambda **options: set(TextTokenizer.train(texts, "word", **options).backend.get_vocab())  # noqa: E731
    assert entries(vocab_size=100) == {*SPECIAL_TOKENS, "▁a", "▁b", "▁c", "▁d"}
    assert entries(vocab_size=6) == {*SPECIAL_TOKENS, "▁a", "▁b"}
    assert entries(vocab_size=100, min_frequency=2) == {*SPECIAL_TOKENS, "▁a", "▁b"}


def test_bpe_minimum_frequency_limits_the_merges():
    texts = ["ab", "ab", "ab", "ac"]  # pairs: ▁a 4, ▁a+b 3, ▁a+c 1
    entries = TextTokenizer.train(texts, "bpe", 100, min_frequency=3).backend.get_vocab()
    assert set(entries) == {*SPECIAL_TOKENS, *"▁abc", "▁a", "▁ab"}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_rare_and_surplus_characters_become_unknown(kind):
    texts = ["aaaa bbb" * 200] * 800 + ["aaжaa"]  # more than a million characters, ж once
    tokenizer = TextTokenizer.train(texts, kind, 50)
    assert "ж" not in tokenizer.backend.get_vocab()
    assert UNK_ID in tokenizer.encode(["aaжaa"])[0]
    small = TextTokenizer.train(["aaa bb c"], kind, 7)  # room for ▁ and two characters
    assert set(small.backend.get_vocab()) == {*SPECIAL_TOKENS, "▁", "a", "b"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab_size", [6, 20, 60, 5000])
def test_vocabulary_size_is_an_upper_bound(kind, vocab_size):
    tokenizer = TextTokenizer.train(CORPUS, kind, vocab_size)
    assert tokenizer.vocab_size <= vocab_size
    assert sorted(tokenizer.backend.get_vocab().values()) == list(range(tokenizer.vocab_size))


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_deterministic_in_any_order(kind):
    rng = random.Random(0)
    syllables = [c + v for c in "bcdfglmnprst" for v in "aeiou"]
    words = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(1000)]
    texts = [" ".join(rng.choices(words, k=8)) + rng.choice(".!?") for _ in range(1000)]
    expected = TextTokenizer.train(texts, kind, 400).to_json()
    for _ in range(3):
        rng.shuffle(texts)
        assert TextTokenizer.train(texts, kind, 400).to_json() == expected


def test_training_is_deterministic_across_processes():
    program = (
        "import hashlib\n"
        "from data.text.tokenization import TextTokenizer\n"
        "from tests.data.text.test_tokenization import CORPUS\n"
        "print([hashlib.sha256(TextTokenizer.train(CORPUS, kind, 200).to_json().encode()).hexdigest()\n"
        "       for kind in ('bpe', 'unigram', 'word')])\n"
    )
    expected = [
        hashlib.sha256(TextTokenizer.train(CORPUS, kind, 200).to_json().encode()).hexdigest() for kind in KINDS
    ]
    for seed, threads in (("1", "1"), ("2", "3")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads}
        run = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == str(expected)


WITH_NUMBERS = ["um 10:30 Uhr", "1.000,50 € (oder €7)", "3-4 a12b 12", "x <num>", "12"]


@pytest.mark.parametrize("kind", KINDS)
def test_masked_numbers_are_one_token_each_and_come_back_from_the_source(kind):
    texts = [*CORPUS, *WITH_NUMBERS]
    trained = TextTokenizer.train(texts, kind, 300, mask_numbers=True)
    for tokenizer in (trained, TextTokenizer.from_json(trained.to_json())):
        assert tokenizer.masks_numbers
        ids = tokenizer.encode(["um 10:30 Uhr 7", "3-4 a12b"])
        tokens = [tokenizer.tokens(sentence) for sentence in ids]
        assert [t for t in tokens[0] if "num" in t] == ["▁<num>"] * 2
        assert [t for t in tokens[1] if "num" in t] == ["▁<num>", "<num>", "<num>"]
        assert tokenizer.decode(ids) == ["um <num> Uhr <num>", "<num>-<num> a<num>b"]
        assert tokenizer.decode(tokenizer.encode(texts), texts) == list(map(normalised, texts))
        assert tokenizer.decode(ids, ["1", "2 5 6 7"]) == ["um 1 Uhr", "2-5 a6b"]
    assert not any(c.isdigit() for token in trained.backend.get_vocab() for c in token)


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_masked_where_training_had_none_and_kept_where_not_asked_for(kind):
    masking = TextTokenizer.train(["ein Haus", "zwei Häuser"] * 3, kind, 60, mask_numbers=True)
    (ids,) = masking.encode(["ein 1.50"])
    assert UNK_ID not in ids and masking.decode([ids], ["2,75"])[0].endswith(" 2,75")
    plain = TextTokenizer.train([*CORPUS, *WITH_NUMBERS], kind, 300)
    assert not plain.masks_numbers
    assert plain.decode(plain.encode(["um 10:30 Uhr"]), ["um 9 Uhr"]) == ["um 10:30 Uhr"]


def test_bpe_dropout_leaves_masked_numbers_whole_or_marked():
    tokenizer = TextTokenizer.train([*CORPUS, *WITH_NUMBERS], "bpe", 300, mask_numbers=True)
    texts = [*CORPUS, "um 10:30 Uhr, 3-4"]
    assert BPEDropout(tokenizer, 0.0).encode(texts, np.random.default_rng(0)) == tokenizer.encode(texts)
    for seed in range(5):
        ids = BPEDropout(tokenizer, 0.5).encode(texts, np.random.default_rng(seed))
        assert tokenizer.decode(ids, texts) == list(map(normalised, texts))


@pytest.mark.parametrize("kind", KINDS)
def test_saved_tokenizer_is_the_same(tmp_path, kind):
    tokenizer = TextTokenizer.train(CORPUS, kind, 200)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.kind, loaded.vocab_size, loaded.to_json()) == (kind, tokenizer.vocab_size, tokenizer.to_json())
    texts = [*CORPUS, "漢字 nuovo"]
    assert loaded.encode(texts) == tokenizer.encode(texts)
    assert loaded.decode(loaded.encode(texts)) == tokenizer.decode(tokenizer.encode(texts))


def test_damaged_files_are_data_errors(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(DataError, match=r"tokenizer\.json: .*No such file"):
        TextTokenizer.load(path)
    whole = TextTokenizer.train(CORPUS, "bpe", 200).to_json()
    for damaged in ("", "{}", whole[: len(whole) // 2], whole.replace("<eos>", "</s>"), "\x00\x01"):
        path.write_text(damaged)
        with pytest.raises(DataError, match=r"tokenizer\.json") as error:
            TextTokenizer.load(path)
        assert "\n" not in str(error.value)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"tokenizer\.json"):
        TextTokenizer.load(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": ["", "  "]}, "no text"),
        ({"texts": []}, "no text"),
        ({"vocab_size": 5}, "too small"),
        ({"vocab_size": 7, "mask_numbers": True}, "at least 8"),
        ({"texts": ["12", "3 4"], "mask_numbers": True}, "no text"),
        ({"kind": "unigram", "min_frequency": 2}, "minimum frequency"),
        ({"kind": "wordpiece"}, "'wordpiece'"),
    ],
)
def test_impossible_requests(arguments, message):
    with pytest.raises(DataError, match=message):
        TextTokenizer.train(**{"texts": CORPUS, "kind": "bpe", "vocab_size": 100, **arguments})


@pytest.mark.skipif(not EUROPARL.exists(), reason="the Europarl file is not here")
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_real_text(kind):
    with gzip.open(EUROPARL, "rt", encoding="utf-8", newline="\n") as lines:
        texts = [next(lines) for _ in range(10000)]
    start = time.perf_counter()
    tokenizer = TextTokenizer.train(texts, kind, 4000)
    ids = tokenizer.encode(texts)
    assert time.perf_counter() - start < 20
    assert tokenizer.vocab_size == 4000
    assert sum(map(len, ids)) < 2 * sum(len(text.split()) for text in texts)
    assert tokenizer.decode(ids) == [normalised(text) for text in texts]


N = 100_000
MONSTERS = {
    "letters": "".join(random.Random(0).choices("abcdefghijklmnopqrstuvwxyzABCDEFGH", k=N)),
    "one letter": "a" * N,
    "digits": "1" * N,
    "marks": "!" * N,
    "emoji": "\N{GRINNING FACE}" * N,
    "accents": "a" + "\u0301\u0327" * (N // 2),
    "ideographs": "漢" * N,
    "words": "il gatto " * N,
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_monstrous_line_is_read_in_training_and_after_it(kind):
    """The unigram trainer dies of a word of 100,000 letters, and the BPE trainer takes its square in time."""
    start = time.process_time()
    tokenizer = TextTokenizer.train([*CORPUS, *MONSTERS.values()], kind, 300, mask_numbers=True)
    assert all(tokenizer.encode([*CORPUS, *MONSTERS.values()]))
    assert max(map(len, tokenizer.backend.get_vocab())) <= MAX_WORD + 1  # and the space before
    assert time.process_time() - start < 60


@pytest.mark.parametrize("kind", KINDS)
def test_long_words_change_nothing_for_others(kind):
    expected = TextTokenizer.train(CORPUS, kind, 300).to_json()
    assert TextTokenizer.train(list(map(_with_long_words_cut, CORPUS)), kind, 300).to_json() == expected
    assert _with_long_words_cut("a" * MAX_WORD + " " + "b" * MAX_WORD + ".c") == f"{'a' * 256} {'b' * 256}.c"
    assert _with_long_words_cut("x " + "a" * (2 * MAX_WORD + 1)) == f"x {'a' * 256} {'a' * 256} a"
