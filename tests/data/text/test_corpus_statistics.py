import math
from collections import Counter

import numpy as np
import pytest

from data.errors import DataError
from data.text.corpus import CorpusSplits, TranslationCorpus
from data.text.corpus_statistics import (
    CountedText,
    analyse,
    count_tokens,
    find_suspicious,
    greatest_min_frequency,
    length_losses,
    length_ratio_summary,
    length_summary,
    number_words,
    smallest_max_len,
    unknown_shares,
    vocabulary_sizes,
    words_by_occurrences,
)
from data.text.parallel_text import ParallelText
from data.text.tokenization import TextTokenizer

SENTENCES = ["the cat sat.", "the cat, the dog", "a dog at 10:30", "B2 cost 10.50", "", "10 dogs  at 7."]
TOKENS = [  # by hand
    ["▁the", "▁cat", "▁sat", "."],
    ["▁the", "▁cat", ",", "▁the", "▁dog"],
    ["▁a", "▁dog", "▁at", "▁", "1", "0", ":", "3", "0"],
    ["▁B", "2", "▁cost", "▁", "1", "0", ".", "5", "0"],
    [],
    ["▁", "1", "0", "▁dogs", "▁at", "▁", "7", "."],
]
OCCURRENCES = Counter(token for sentence in TOKENS for token in sentence)


def of_lengths(*lengths: int) -> CountedText:
    return CountedText(Counter(), np.array(lengths), Counter(), Counter())


# --- counts ---


def test_tokens_types_and_lengths_are_those_of_a_plain_count():
    counted = count_tokens(SENTENCES)
    assert counted.occurrences == OCCURRENCES
    assert counted.lengths.tolist() == [4, 5, 9, 9, 0, 8]
    assert (counted.n_tokens, counted.n_types) == (35, len({*OCCURRENCES}))


@pytest.mark.parametrize("lowercase", [False, True])
def test_counts_are_those_of_the_trained_word_tokenizer(lowercase):
    odd = [
        "Cafe\u0301 İstanbul ΟΔΟΣ ▁x_▁",
        "1.234,50 ³⁄₄ x² ２３",
        "„Na“-so… 'ne\u00a0Sache\x1d!",
        "中文 一二 <unk> <eos>",
    ]
    texts = SENTENCES + odd
    tokenizer = TextTokenizer.train(texts, "word", vocab_size=1000, lowercase=lowercase)
    tokens = [tokenizer.tokens(ids) for ids in tokenizer.encode(texts)]
    counted = count_tokens(texts, lowercase)
    assert counted.occurrences == Counter(token for sentence in tokens for token in sentence)
    assert counted.lengths.tolist() == [len(sentence) for sentence in tokens]


def test_no_text_at_all_is_refused():
    with pytest.raises(DataError, match="empty"):
        count_tokens(["", " "])


# --- words ---


def test_words_by_occurrences_are_those_of_a_plain_count():
    rows = words_by_occurrences(count_tokens(SENTENCES), exactly=(1, 3), below=(3, 4))
    chosen = {
        "1": lambda n: n == 1,
        "3": lambda n: n == 3,
        "< 3": lambda n: n < 3,
        "< 4": lambda n: n < 4,
        "all": lambda n: True,
    }
    for row, (name, fits) in zip(rows, chosen.items(), strict=True):
        counts = [n for n in OCCURRENCES.values() if fits(n)]
        assert row == {
            "occurrences": name,
            "types": len(counts),
            "type_share": pytest.approx(len(counts) / len(OCCURRENCES)),
            "tokens": sum(counts),
            "token_share": pytest.approx(sum(counts) / 35),
        }
    assert rows[0]["types"] == len(["▁sat", ",", "▁a", ":", "3", "▁B", "2", "▁cost", "5", "▁dogs", "7"])
    assert [row["occurrences"] for row in words_by_occurrences(count_tokens(SENTENCES))] == [
        "1",
        "2",
        "3",
        "4",
        "< 5",
        "< 6",
        "< 10",
        "< 20",
        "< 50",
        "< 100",
        "all",
    ]


def test_unknown_shares_and_vocabulary_sizes_are_those_of_the_trainer():
    train = ["x x x x y y y z z w", "x y v"]
    heldout = ["x y z w v u u"]
    counted = count_tokens(train)
    unknown = unknown_shares(counted, count_tokens(heldout))
    # x occurs 5 times, y 4, z 2, w and v once, u never
    assert (unknown * 7).round(9).tolist() == [2, 4, 5, 5, 6, 7, 7, 7, 7, 7]
    assert vocabulary_sizes(counted).tolist() == [4 + n for n in (5, 3, 2, 2, 1, 0, 0, 0, 0, 0)]
    for f in range(1, 6):
        tokenizer = TextTokenizer.train(train, "word", 1000, min_frequency=f)
        assert tokenizer.vocab_size == vocabulary_sizes(counted)[f - 1]
        assert tokenizer.encode(heldout)[0].count(1) == round(7 * unknown[f - 1])


def test_numbers_are_those_of_a_plain_count():
    counted = count_tokens(SENTENCES)
    assert counted.numbers == {"10:30": 1, "2": 1, "10.50": 1, "10": 1, "7": 1}
    n = number_words(counted)
    digits = sum(OCCURRENCES[d] for d in "0123456789")
    assert digits == 12
    assert (n["digit_tokens"], n["digit_types"]) == (digits, 6)  # 0 1 2 3 5 7
    assert n["digit_token_share"] == pytest.approx(digits / 35)
    assert (n["numbers"], n["distinct_numbers"]) == (5, 5)
    # By hand: with numbers whole or masked, "▁" and ":" go with the digits, but "." also ends sentences.
    masked = [
        ["▁the", "▁cat", "▁sat", "."],
        ["▁the", "▁cat", ",", "▁the", "▁dog"],
        ["▁a", "▁dog", "▁at", "<num>"],
        ["▁B", "<num>", "▁cost", "<num>"],
        ["<num>", "▁dogs", "▁at", "<num>", "."],
    ]
    n_tokens, n_types = sum(map(len, masked)), len({token for sentence in masked for token in sentence})
    assert n["ways"] == {
        "digits": {"types": len(OCCURRENCES), "tokens": 35},
        "whole": {"types": n_types - 1 + 5, "tokens": n_tokens},
        "masked": {"types": n_types, "tokens": n_tokens},
    }


def test_text_without_numbers_is_the_same_in_all_three_ways():
    ways = number_words(count_tokens(["no number, no mask."]))["ways"]
    assert ways["digits"] == ways["whole"] == ways["masked"] == {"types": 5, "tokens": 6}


# --- lengths ---


def test_length_summary_is_that_of_a_plain_count():
    lengths = [(7 * i) % 100 for i in range(100)] + [1000]  # 0 .. 99 and 1000
    ranked = sorted(lengths)
    summary = length_summary(np.array(lengths))
    assert summary["mean"] == pytest.approx(sum(lengths) / 101)
    assert (summary["median"], summary["max"]) == (50, 1000)
    for name, percent in (("q90", 90), ("q95", 95), ("q99", 99)):
        assert summary[name] == ranked[math.ceil(percent * 101 / 100) - 1]
    assert length_summary(np.array([1, 2]))["median"] == 1.5


def test_length_ratios_leave_out_empty_sides():
    summary = length_ratio_summary(of_lengths(2, 4, 0, 5, 4), of_lengths(4, 2, 7, 0, 4))
    assert summary == {
        "mean": pytest.approx(3.5 / 3),
        "q01": 0.5,
        "q05": 0.5,
        "median": 1.0,
        "q95": 2.0,
        "q99": 2.0,
    }


def test_length_losses_are_what_the_trainer_drops():
    rng = np.random.default_rng(0)
    sides = [[" ".join(["w"] * n) for n in rng.integers(1, 30, 60)] for _ in range(2)]
    text = ParallelText(*sides)
    source, target = map(count_tokens, sides)
    losses = length_losses(source, target)
    for max_len in (8, 10, 20, 29, 30, 31, 128):
        corpus = TranslationCorpus(
            CorpusSplits(text, text, text),
            kind="word",
            vocab_size=100,
            min_frequency=1,
            lowercase=False,
            joint=False,
            max_len=max_len,
        )
        lost = [pair for pair in text.pairs() if max(len(side.split()) for side in pair) + 1 > max_len]
        assert len(lost) == corpus.n_too_long
        shares = [len(lost) / 60]
        for i, side in enumerate(sides):
            shares.append(sum(len(p[i].split()) for p in lost) / sum(len(s.split()) for s in side))
        assert list(losses.at(max_len).values()) == pytest.approx(shares)
    assert losses.at(128)["pairs"] == 0 < losses.at(29)["pairs"]


# --- duplicates and suspicious pairs ---


def findings(pairs: list[tuple[str, str]]) -> dict:
    text = ParallelText([s for s, _ in pairs], [t for _, t in pairs])
    found = find_suspicious(text, count_tokens(text.sources), count_tokens(text.targets))
    return {finding.name: finding for finding in found}


def test_each_kind_of_suspicious_pair_is_found_and_no_other():
    plain = [("eins", "one"), ("zwei", "two"), ("drei", "three")]
    odd = {
        "repeated pair": [("eins", "one")],
        "identical sides": [("Amen", "amen")],
        "extreme length ratio": [("kurz", "a b c d e f g h"), ("nein", "a b c d e f g h i j")],
        "empty side": [("", "nothing"), ("nichts", " ")],
        "mostly non-letters": [("§§ 1", "law"), ("Uhr", "10:30 h")],
    }
    found = findings(plain + [pair for pairs in odd.values() for pair in pairs])
    for name, pairs in odd.items():
        assert sorted(found[name].examples) == sorted(pairs), name
        assert (found[name].count, found[name].total) == (len(pairs), 11)
    assert found["extreme length ratio"].examples[0][0] == "nein"  # the worst first
    assert found["source with several targets"].count == found["target with several sources"].count == 0
    assert not any(finding.count for finding in findings(plain).values())


def test_the_extreme_ratio_begins_above_twice_the_tokens_and_five():
    assert findings([("x y", "a b c d e f g h i")])["extreme length ratio"].count == 0
    assert findings([("x y", "a b c d e f g h i j")])["extreme length ratio"].count == 1
    assert findings([("a b c d e f g h i j", "x y")])["extreme length ratio"].count == 1


def test_words_with_marks_are_letters():
    assert findings([("हिन्दी में", "in Hindi")])["mostly non-letters"].count == 0


def test_sentences_with_several_translations_the_most_ambiguous_first():
    pairs = [
        ("du", "you"),
        ("ihr", "you"),
        ("du", "thou"),
        ("Sie", "you"),
        ("man", "you"),
        ("du", "you"),
        ("er", "he"),
    ]
    found = findings(pairs)
    several = found["target with several sources"]
    assert (several.count, several.total) == (1, 3)
    assert several.examples == [("du | ihr | Sie | … 1 more", "you")]
    several = found["source with several targets"]
    assert (several.count, several.total) == (1, 5)
    assert several.examples == [("du", "you | thou")]
    assert found["repeated pair"].count == 1


def test_at_most_five_examples_but_all_are_counted():
    found = findings([(f"wort{'abcdefg'[i]}", f"wort{'abcdefg'[i]}") for i in range(7)])["identical sides"]
    assert (found.count, len(found.examples)) == (7, 5)


# --- recommendation ---


@pytest.mark.parametrize(
    ("added", "expected"),
    [
        ([0.0] * 10, 10),  # nothing is ever lost: no reason to keep rare words
        ([0, 0.02] + [0.02] * 8, 1),
        ([0, 0.004, 0.01, 0.0101] + [0.02] * 6, 3),  # 1 % is still allowed
    ],
)
@pytest.mark.parametrize("never_seen", [0.0, 0.3])
def test_min_frequency_is_the_greatest_that_adds_one_percent(added, expected, never_seen):
    assert greatest_min_frequency(never_seen + np.array(added)) == expected


def test_max_len_is_the_smallest_that_loses_half_a_percent_of_either_side():
    four, eight = [4] * 398, [8]  # the long one is 8 of 1600 tokens, just 0.5 %
    assert smallest_max_len(length_losses(of_lengths(*four, *eight), of_lengths(*four, *eight))) == 5
    assert smallest_max_len(length_losses(of_lengths(*four[1:], *eight), of_lengths(*four[1:], *eight))) == 9
    # The source could lose the pair, one of 200 tokens, but not the target: it would lose 9 of 208.
    source, target = of_lengths(*[1] * 200), of_lengths(*[1] * 199, 9)
    assert smallest_max_len(length_losses(source, target)) == 10
    assert smallest_max_len(length_losses(target, source)) == 10
    assert smallest_max_len(length_losses(source, source)) == 2  # all are as long


def test_the_analysis_recommends_what_serves_both_languages():
    # Of 1000 validation tokens, 10 (1 %) are words that occur twice in training: these may go, others not.
    common = [f"c{chr(97 + i)}" for i in range(20)]
    rare = [f"r{chr(97 + i)}" for i in range(10)]
    train = [" ".join(common)] * 12 + [" ".join(rare)] * 2
    train += [f"o{chr(97 + i)}" for i in range(26)] * 3  # thrice
    lost_at_4 = [f"o{chr(97 + i)}" for i in range(20)]
    valid_source = [" ".join(rare + common[:10] * 97 + common)]  # 1000 tokens
    valid_target = [" ".join(lost_at_4 + common * 49)]  # 1000 tokens
    assert [len(s[0].split()) for s in (valid_source, valid_target)] == [1000, 1000]
    splits = CorpusSplits(
        ParallelText(train, train), ParallelText(valid_source, valid_target), ParallelText(["x"], ["y"])
    )
    analysis = analyse(splits)
    assert analysis.min_frequencies == (10, 3)  # 1 % at 3 and above; 2 % at 4 and above
    assert analysis.min_frequency == 3
    assert analysis.vocab_size == 4 + 20 + 26
    assert analysis.max_len == 21
    assert analysis.unknown["valid"][:, 3].tolist() == pytest.approx([0.01, 0.02])
    assert analysis.unknown["test"].tolist() == [[1.0] * 10] * 2
    assert [side.n_tokens for side in analysis.counted["valid"]] == [1000, 1000]


def test_lower_case_merges_types():
    text = ParallelText(["Der der DER"], ["The the"])
    splits = CorpusSplits(text, text, text)
    assert [side.n_types for side in analyse(splits).counted["train"]] == [3, 2]
    assert [side.n_types for side in analyse(splits, lowercase=True).counted["train"]] == [1, 1]
