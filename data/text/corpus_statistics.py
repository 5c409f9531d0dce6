"""What there is to know of a parallel corpus before training: words, lengths, numbers, suspicious pairs.

Tokens are those of the word-level tokenizer (data/text/tokenization.py) and lengths are limited as the trainer
limits them, so that every number is what train_translation.py will see with `--tokenizer word`.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.text.corpus import CorpusSplits
from data.text.parallel_text import ParallelText
from data.text.tokenization import SPECIAL_TOKENS, WORD_START, TextTokenizer

MAX_ADDED_UNKNOWN = 0.01  # share of the validation tokens that a minimum frequency may make unknown
MAX_LOST_TOKENS = 0.005  # share of the training tokens that a maximum length may lose
HIGHEST_MIN_FREQUENCY = 10

_NO_LIMIT = 10**9  # entries of a vocabulary
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")  # 7, 1.000,50, 31.12.1999, 10:30
_EXAMPLES = 5
_ALTERNATIVES = 3  # translations shown of a sentence that has several


@dataclass(frozen=True)
class CountedText:
    """N sentences of one language, counted."""

    occurrences: Counter[str]  # of each token type, "▁" before it where it begins a word
    lengths: np.ndarray  # (N,) int64, tokens of each sentence, end mark not counted
    numbers: Counter[str]  # occurrences of each number, such as "1.000,50"
    number_tokens: Counter[str]  # occurrences, inside of numbers, of the token types that these consist of

    @property
    def n_tokens(self) -> int:
        return self.occurrences.total()

    @property
    def n_types(self) -> int:
        return len(self.occurrences)


def count_tokens(sentences: Sequence[str], lowercase: bool = False) -> CountedText:
    """Count what the word-level tokenizer makes of the sentences.

    Its tokens never reach over white space, so that each distinct word is tokenized but once.
    Raises DataError where there is no text at all.
    """
    words = Counter(word for sentence in sentences for word in sentence.split())
    tokenizer = TextTokenizer.train(words, "word", _NO_LIMIT, lowercase=lowercase)
    tokens = dict(zip(words, map(tokenizer.tokens, tokenizer.encode(list(words))), strict=True))

    occurrences: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    number_tokens: Counter[str] = Counter()
    for word, count in words.items():
        for token in tokens[word]:
            occurrences[token] += count
        for number in _NUMBER.finditer(word):
            numbers[number[0]] += count
            # Digits and punctuation stand alone; so does the mark of a word that begins with a digit.
            for token in ([WORD_START] if number.start() == 0 else []) + list(number[0]):
                number_tokens[token] += count
    n_tokens = {word: len(tokens[word]) for word in words}
    lengths = np.array([sum(map(n_tokens.__getitem__, sentence.split())) for sentence in sentences], np.int64)
    return CountedText(occurrences, lengths, numbers, number_tokens)


# Words


def words_by_occurrences(
    text: CountedText, exactly: Sequence[int] = (1, 2, 3, 4), below: Sequence[int] = (5, 6, 10, 20, 50, 100)
) -> list[dict]:
    """A row for the types with each number of occurrences, then for those with fewer than each, then for all.

    Each has "occurrences" ("3", "< 5", "all"), "types" and "tokens", and their shares "type_share" and
    "token_share" of all types and of all tokens.
    """
    counts = np.fromiter(text.occurrences.values(), np.int64)  # (V,)
    chosen = {f"{n}": counts == n for n in exactly} | {f"< {n}": counts < n for n in below} | {"all": counts > 0}
    return [
        {
            "occurrences": name,
            "types": int(mask.sum()),
            "type_share": float(mask.mean()),
            "tokens": int(counts[mask].sum()),
            "token_share": float(counts[mask].sum() / counts.sum()),
        }
        for name, mask in chosen.items()
    ]


def unknown_shares(train: CountedText, heldout: CountedText) -> np.ndarray:
    """Share of held-out tokens without a vocabulary entry at minimum frequency 1 .. 10: (10,) float64.

    Those at 1 never occur in training; a minimum frequency adds to them.
    """
    seen = np.array([train.occurrences[token] for token in heldout.occurrences])
    counts = np.array(list(heldout.occurrences.values()))
    return np.array([counts[seen < f].sum() for f in range(1, HIGHEST_MIN_FREQUENCY + 1)]) / counts.sum()


def vocabulary_sizes(train: CountedText) -> np.ndarray:
    """Entries of the vocabulary, special tokens counted, at minimum frequency 1 .. 10: (10,) int64."""
    counts = np.fromiter(train.occurrences.values(), np.int64)
    return np.array([(counts >= f).sum() for f in range(1, HIGHEST_MIN_FREQUENCY + 1)]) + len(SPECIAL_TOKENS)


def number_words(text: CountedText) -> dict:
    """Tokens with digits, and the types and tokens there would be for three ways to treat numbers.

    "digit_tokens", "digit_token_share", "digit_types": tokens with a decimal digit in them.
    "numbers", "distinct_numbers": runs of digits, with single points, commas and colons inside of them.
    "ways": for "digits" (as the tokenizer has it: each digit a token), "whole" (each number a token) and
    "masked" (each is the same token, <num>), the "types" and "tokens" of the whole text.
    """
    digit_types = [token for token in text.occurrences if any(map(str.isdecimal, token))]
    digit_tokens = sum(text.occurrences[token] for token in digit_types)
    n_numbers = text.numbers.total()
    only_in_numbers = sum(text.occurrences[token] == count for token, count in text.number_tokens.items())
    other_types = text.n_types - only_in_numbers
    n_tokens = text.n_tokens - text.number_tokens.total() + n_numbers
    return {
        "digit_tokens": digit_tokens,
        "digit_token_share": digit_tokens / text.n_tokens,
        "digit_types": len(digit_types),
        "numbers": n_numbers,
        "distinct_numbers": len(text.numbers),
        "ways": {
            "digits": {"types": text.n_types, "tokens": text.n_tokens},
            "whole": {"types": other_types + len(text.numbers), "tokens": n_tokens},
            "masked": {"types": other_types + (n_numbers > 0), "tokens": n_tokens},
        },
    }


# Lengths


def length_summary(lengths: np.ndarray) -> dict[str, float]:
    """Mean, median, quantiles ("q90": the least length that 90 % of the sentences do not exceed) and "max"."""
    q90, q95, q99 = np.quantile(lengths, (0.90, 0.95, 0.99), method="inverted_cdf").tolist()
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "q90": q90,
        "q95": q95,
        "q99": q99,
        "max": int(lengths.max()),
    }


def length_ratio_summary(source: CountedText, target: CountedText) -> dict[str, float]:
    """Target tokens for each source token of a pair: "mean", and quantiles "q01", "q05", "median", "q95", "q99".

    Pairs with an empty side are left out; there must be others. A quantile is the least ratio that such a share
    of the pairs does not exceed.
    """
    both = (source.lengths > 0) & (target.lengths > 0)
    ratios = target.lengths[both] / source.lengths[both]
    wanted = {"q01": 0.01, "q05": 0.05, "median": 0.5, "q95": 0.95, "q99": 0.99}
    quantiles = np.quantile(ratios, list(wanted.values()), method="inverted_cdf").tolist()
    return {"mean": float(ratios.mean()), **dict(zip(wanted, quantiles, strict=True))}


@dataclass(frozen=True)
class LengthLosses:
    """Shares of the pairs and of each side's tokens that `--max_len` 0, 1, .. M drops; M drops nothing.

    A pair is dropped where either side, end mark counted, is longer.
    """

    pairs: np.ndarray  # (M + 1,) float64
    source_tokens: np.ndarray  # (M + 1,) float64
    target_tokens: np.ndarray  # (M + 1,) float64

    def at(self, max_len: int) -> dict[str, float]:
        """The three shares at one maximum length."""
        index = min(max_len, len(self.pairs) - 1)
        return {name: float(getattr(self, name)[index]) for name in ("pairs", "source_tokens", "target_tokens")}


def length_losses(source: CountedText, target: CountedText) -> LengthLosses:
    """What each maximum length drops of the pairs whose sides are `source` and `target`."""
    needed = np.maximum(source.lengths, target.lengths) + 1  # the end mark

    def lost_share(weights: np.ndarray) -> np.ndarray:
        kept = np.cumsum(np.bincount(needed, weights))  # whole numbers, exact in float64
        return (kept[-1] - kept) / kept[-1]

    return LengthLosses(*map(lost_share, (np.ones(len(needed)), source.lengths, target.lengths)))


# Duplicates and suspicious pairs


@dataclass(frozen=True)
class Finding:
    """Something found `count` times among `total` things ("pairs", "distinct sources", ..: `unit`)."""

    name: str
    count: int
    total: int
    unit: str
    examples: list[tuple[str, str]]  # (source, target), five at most


def find_suspicious(text: ParallelText, source: CountedText, target: CountedText) -> list[Finding]:
    """Duplicates, sentences with several translations, and pairs that are likely to be no translations.

    `source` and `target`: the counts of the two sides of `text`, whose lengths are used. In this order:

    - "repeated pair": the same source and target as an earlier pair;
    - "source with several targets" and "target with several sources", the most ambiguous first;
    - "identical sides", but for case: names, or text left untranslated;
    - "extreme length ratio": the longer side has more than twice the tokens of the shorter + 5, the worst
      first. It is stricter than `data.text.parallel_text.clean`, which drops the hopeless pairs;
    - "empty side";
    - "mostly non-letters": on a side, letters make up less than half of what is no white space.
    """
    pairs = list(text.pairs())
    distinct = dict.fromkeys(pairs)
    targets_of: dict[str, list[str]] = {}
    sources_of: dict[str, list[str]] = {}
    for s, t in distinct:
        targets_of.setdefault(s, []).append(t)
        sources_of.setdefault(t, []).append(s)
    # The translations of one sentence are one example.
    several_targets = [(s, _alternatives(targets)) for s, targets in _ambiguous(targets_of)]
    several_sources = [(_alternatives(sources), t) for t, sources in _ambiguous(sources_of)]

    seen: set[tuple[str, str]] = set()
    repeated = []
    for pair in pairs:
        if pair in seen:
            repeated.append(pair)
        seen.add(pair)
    shorter = np.minimum(source.lengths, target.lengths)
    excess = np.maximum(source.lengths, target.lengths) - 2 * shorter - 5
    uneven = [pairs[i] for i in np.argsort(-excess, kind="stable")[: int((excess > 0).sum())]]

    def finding(name: str, found: list[tuple[str, str]], total: int = len(pairs), unit: str = "pairs") -> Finding:
        return Finding(name, len(found), total, unit, found[:_EXAMPLES])

    return [
        finding("repeated pair", repeated),
        finding("source with several targets", several_targets, len(targets_of), "distinct sources"),
        finding("target with several sources", several_sources, len(sources_of), "distinct targets"),
        finding("identical sides", [(s, t) for s, t in pairs if s.strip() and s.casefold() == t.casefold()]),
        finding("extreme length ratio", uneven),
        finding("empty side", [(s, t) for s, t in pairs if not (s.strip() and t.strip())]),
        finding("mostly non-letters", [pair for pair in pairs if any(map(_mostly_non_letters, pair))]),
    ]


def _ambiguous(translations: dict[str, list[str]]) -> list[tuple[str, list[str]]]:
    several = [entry for entry in translations.items() if len(entry[1]) > 1]
    return sorted(several, key=lambda entry: -len(entry[1]))


def _alternatives(sentences: list[str]) -> str:
    more = len(sentences) - _ALTERNATIVES
    return " | ".join(sentences[:_ALTERNATIVES]) + (f" | … {more} more" if more > 0 else "")


def _mostly_non_letters(sentence: str) -> bool:
    characters = "".join(sentence.split())
    # Marks count too: some scripts write vowels as such.
    n_letters = sum(c.isalpha() or unicodedata.category(c)[0] == "M" for c in characters)
    return 2 * n_letters < len(characters)


# Recommendation, and all together


def greatest_min_frequency(unknown: np.ndarray) -> int:
    """The greatest minimum frequency, 1 .. 10, that makes at most 1 % of the held-out tokens unknown.

    unknown: shares at minimum frequency 1 .. 10, as `unknown_shares` gives them. Words that training never has
        are left out of the account, being unknown at any minimum frequency.

    A word rarer than the answer costs an entry of each embedding and gets a handful of updates an epoch, and
    all of them together make up less than one held-out token in a hundred.
    """
    added = unknown - unknown[0]
    return int(np.flatnonzero(added <= MAX_ADDED_UNKNOWN + 1e-9)[-1]) + 1  # 1e-9: for rounding


def smallest_max_len(losses: LengthLosses) -> int:
    """The smallest maximum length, end mark counted, that loses at most 0.5 % of the tokens of either side.

    Tokens and not pairs, since the longest pairs are few and hold the most to learn from.
    """
    worse = np.maximum(losses.source_tokens, losses.target_tokens)
    return int(np.flatnonzero(worse <= MAX_LOST_TOKENS)[0])


@dataclass(frozen=True)
class CorpusAnalysis:
    """What `analyse` finds. A pair or an axis of two is (source, target)."""

    counted: dict[str, tuple[CountedText, CountedText]]  # of "train", "valid" and "test"
    losses: LengthLosses  # of the training split, by maximum length
    findings: list[Finding]  # in the training split
    unknown: dict[str, np.ndarray]  # of "valid" and "test": share unknown at minimum frequency 1 .. 10, (2, 10)
    vocabulary: np.ndarray  # entries at minimum frequency 1 .. 10, (2, 10) int64
    min_frequencies: tuple[int, int]  # the recommendation for each side
    max_len: int  # the recommendation for both

    @property
    def min_frequency(self) -> int:
        """The recommendation where one is to serve both sides, as in the trainer: the lower of the two."""
        return min(self.min_frequencies)

    @property
    def vocab_size(self) -> int:
        """Entries that hold either side's vocabulary at the recommended minimum frequency."""
        return int(self.vocabulary[:, self.min_frequency - 1].max())


def analyse(splits: CorpusSplits, lowercase: bool = False) -> CorpusAnalysis:
    """Count all splits and choose settings: by the validation split, so that the test split stays unseen.

    Raises DataError where one side of a split holds no text.
    """
    counted = {
        name: (count_tokens(text.sources, lowercase), count_tokens(text.targets, lowercase))
        for name, text in (("train", splits.train), ("valid", splits.valid), ("test", splits.test))
    }
    train = counted["train"]
    losses = length_losses(*train)
    unknown = {
        name: np.array([unknown_shares(*sides) for sides in zip(train, counted[name], strict=True)])
        for name in ("valid", "test")
    }
    source_frequency, target_frequency = map(greatest_min_frequency, unknown["valid"])
    return CorpusAnalysis(
        counted=counted,
        losses=losses,
        findings=find_suspicious(splits.train, *train),
        unknown=unknown,
        vocabulary=np.array([vocabulary_sizes(side) for side in train]),
        min_frequencies=(source_frequency, target_frequency),
        max_len=smallest_max_len(losses),
    )
