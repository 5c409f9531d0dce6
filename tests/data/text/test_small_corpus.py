import random

import pytest

from data.text.parallel_text import ParallelText
from data.text.small_corpus import settings_for


def text_of(n_pairs: int, alphabet: str, length: int) -> ParallelText:
    rng = random.Random(0)
    some = ["".join(rng.choices(alphabet, k=length)) for _ in range(500)]
    sentences = [some[i % 500] for i in range(n_pairs)]
    return ParallelText(sentences, sentences)


LETTERS = "abcdefghijklmnopqrstuvwxyz "


def test_the_smaller_a_corpus_the_more_epochs_the_smaller_updates_and_the_fewer_tokens():
    found = [settings_for(text_of(n, LETTERS, 35)) for n in (20_000, 30_000, 55_000, 160_000, 200_000)]
    assert [s.epochs for s in found] == [25, 20, 15, 9, 8]
    assert [s.max_tokens for s in found] == [2048, 2048, 2048, 4096, 4096]
    assert [s.d_model for s in found] == [256, 256, 256, 320, 320]
    assert [s.vocab_size for s in found] == [8900, 10200, 12500, 17800, 19200]
    assert all(s.d_model % s.n_heads == 0 and s.d_ff == 4 * s.d_model and s.dropout == 0.2 for s in found)


def test_the_same_pairs_with_longer_sentences_have_more_tokens():
    short, long = (settings_for(text_of(30_000, LETTERS, length)) for length in (35, 280))
    assert long.vocab_size - 27 == pytest.approx(2 * (short.vocab_size - 27), rel=0.05)
    assert long.epochs == short.epochs


def test_an_alphabet_of_thousands_finds_room():
    han = "".join(map(chr, range(0x4E00, 0x4E00 + 2500)))
    assert settings_for(text_of(30_000, han, 35)).vocab_size == 10200 + 2500


def test_rare_characters_take_no_room():
    text = text_of(20_000, LETTERS, 35)
    with_rare = ["".join(map(chr, range(0x4E00, 0x4E00 + 2500))), *text.sources[1:]]
    assert settings_for(ParallelText(with_rare, text.targets)).vocab_size == settings_for(text).vocab_size


def test_settings_stay_within_bounds_for_any_corpus():
    for n_pairs in (1, 1000, 300_000):
        settings = settings_for(text_of(n_pairs, LETTERS, 1))
        assert 8 <= settings.epochs <= 30 and settings.vocab_size >= 100
