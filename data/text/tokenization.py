"""Text to token ids and back: BPE, unigram and word-level vocabularies over the `tokenizers` package.

All three kinds share one normaliser (NFC, every run of white space to one space, ends stripped, lower case
if asked) and one lossless pre-tokeniser: words start with "▁" in place of the space, and each punctuation mark
and each digit stands alone. What is encoded without <unk> decodes to the normalised text, exactly.

With masked numbers, each number is one token instead of its digits, and decodes to a number of the source
sentence (data/text/number_words.py).
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from data.errors import DataError
from data.text.number_words import NUMBER, NUMBER_MARK, NUMBER_TOKEN, fill_numbers

PAD_ID, UNK_ID, BOS_ID, EOS_ID = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<unk>", "<bos>", "<eos>")  # in the order of their ids

WORD_START = "▁"  # U+2581, stands for the space before a word
MASKED_NUMBERS = (WORD_START + NUMBER_MARK, NUMBER_MARK)  # after a space, and inside a word; these ids come next
MAX_WORD = 256  # characters of a word that training looks at as one, so also the most that a token can have
UNKNOWN_MARK = "⁇"  # what decode() shows for <unk>

Kind = Literal["bpe", "unigram", "word"]
_KIND_OF_MODEL: dict[str, Kind] = {"BPE": "bpe", "Unigram": "unigram", "WordLevel": "word"}

# Characters rarer than one in a million become <unk>: too rare to learn, and each would take an entry.
_MIN_CHARACTER_SHARE = 1e-6


class TextTokenizer:
    """A trained tokenizer. Make one with `train`, `from_json` or `load`.

    `backend` is the wrapped `tokenizers.Tokenizer`. The special tokens are no "added tokens" there, so a text
    that happens to contain "<eos>" is read as plain characters and never yields a special id.
    """

    def __init__(self, backend: Tokenizer):
        self.backend = backend
        self.kind: Kind = _KIND_OF_MODEL[type(backend.model).__name__]
        # A word-level <unk> is nearly always a whole word, so its mark takes the space that the word had.
        unknown = WORD_START + UNKNOWN_MARK if self.kind == "word" else UNKNOWN_MARK
        self._surfaces = [backend.id_to_token(i) or "" for i in range(backend.get_vocab_size())]
        for special, surface in ((PAD_ID, ""), (UNK_ID, unknown), (BOS_ID, ""), (EOS_ID, "")):
            self._surfaces[special] = surface
        n = len(SPECIAL_TOKENS)
        self.masks_numbers = tuple(map(backend.id_to_token, (n, n + 1))) == MASKED_NUMBERS

    @classmethod
    def train(
        cls,
        texts: Iterable[str],
        kind: Kind,
        vocab_size: int,
        min_frequency: int = 1,
        lowercase: bool = False,
        mask_numbers: bool = False,
    ) -> "TextTokenizer":
        """Train on `texts`. The same texts in any order give the same tokenizer, in any process.

        kind: "bpe" (Sennrich et al. 2016, arXiv 1508.07909), "unigram" (Kudo 2018, arXiv 1804.10959) or
            "word".
        vocab_size: the largest number of entries, special tokens included; a small corpus gives fewer.
        min_frequency: how often a pair must occur to be merged (bpe), or a word to be an entry (word);
            unigram has no such threshold and takes 1 alone.
        lowercase: lower-case every text, here and in `encode`.
        mask_numbers: read each number, such as 1.000,50 or 10:30, as the token <num>; `decode` copies numbers
            of the source back. There are two such entries, as of every word: with and without a space before.

        Raises DataError if there is no text, if vocab_size is below 6 (8 with masked numbers), or for
        min_frequency with unigram.
        """
        specials = SPECIAL_TOKENS + (MASKED_NUMBERS if mask_numbers else ())
        if vocab_size < len(specials) + 2:
            raise DataError(
                f"a vocabulary of {vocab_size} entries is too small: it needs at least {len(specials) + 2}"
            )
        if kind == "unigram" and min_frequency != 1:
            raise DataError("a unigram tokenizer has no minimum frequency: leave it at 1, or take bpe or word")
        normalizer = _normalizer(lowercase, mask_numbers)
        normalised = [text for text in map(normalizer.normalize_str, texts) if text.strip(NUMBER_MARK + " ")]
        if not normalised:
            besides = " but for their numbers, which are masked" if mask_numbers else ""
            raise DataError(f"no text to train a tokenizer on: all sentences are empty{besides}")

        model: models.Model
        trainer: trainers.Trainer
        options: dict[str, Any] = {
            "vocab_size": vocab_size,
            "special_tokens": list(specials),
            "show_progress": False,
        }
        if kind == "bpe":
            model = models.BPE(unk_token="<unk>", fuse_unk=True)
            trainer = trainers.BpeTrainer(min_frequency=min_frequency, **options)
        elif kind == "unigram":
            model = models.Unigram()
            trainer = trainers.UnigramTrainer(unk_token="<unk>", **options)
        elif kind == "word":
            model = models.WordLevel(unk_token="<unk>")
            trainer = trainers.WordLevelTrainer(min_frequency=min_frequency, **options)
        else:
            raise DataError(f"unknown kind of tokenizer {kind!r}: choose bpe, unigram or word")
        normalised = [_with_long_words_cut(text) for text in normalised]
        if kind != "word":
            normalised = _without_rare_characters(normalised, vocab_size - len(specials) - len(WORD_START))

        backend = Tokenizer(model)
        backend.normalizer = normalizer
        # The trainer sees no masked number: their entries are there, and nothing is to be learnt of them.
        backend.pre_tokenizer = _pre_tokenizer("removed" if mask_numbers else None)
        backend.train_from_iterator(normalised, trainer)
        backend.pre_tokenizer = _pre_tokenizer("isolated" if mask_numbers else None)

        description = json.loads(backend.to_str())
        description["added_tokens"] = []
        if kind == "unigram":
            vocab = description["model"]["vocab"]
            description["model"]["vocab"] = _canonical_unigram_vocab(vocab, len(specials), vocab_size)
        elif kind == "bpe" and mask_numbers:
            description["model"]["merges"].insert(0, [WORD_START, NUMBER_MARK])
        return cls.from_json(json.dumps(description))

    def tokens(self, ids: Iterable[int]) -> list[str]:
        """The token of each id as the vocabulary spells it, special ones too: for figures and tables."""
        spelt = [self.backend.id_to_token(i) or UNKNOWN_MARK for i in ids]
        return [token.replace(NUMBER_MARK, NUMBER_TOKEN) for token in spelt]

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return len(self._surfaces)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Ids of each text, without special tokens. An empty text gives an empty list."""
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, batch: list[list[int]], sources: list[str] | None = None) -> list[str]:
        """Plain text of each id sequence. <pad>, <bos> and <eos> are left out; <unk> shows as "⁇".

        sources: the sentence that each sequence translates, whose numbers take the places of masked ones as
            `fill_numbers` says; without it, a masked number shows as "<num>".
        """
        surfaces = self._surfaces
        texts = ["".join([surfaces[i] for i in ids]) for ids in batch]
        if self.masks_numbers and sources is not None:
            texts = [fill_numbers(text, source) for text, source in zip(texts, sources, strict=True)]
        elif self.masks_numbers:
            texts = [text.replace(NUMBER_MARK, NUMBER_TOKEN) for text in texts]
        return [" ".join(text.replace(WORD_START, " ").split()) for text in texts]

    def to_json(self) -> str:
        """The whole tokenizer as JSON, in the format of the `tokenizers` package."""
        return self.backend.to_str()

    @classmethod
    def from_json(cls, text: str) -> "TextTokenizer":
        """Inverse of `to_json`. Raises DataError where `text` is not a tokenizer of this module."""
        try:
            backend = Tokenizer.from_str(text)
        except Exception as error:  # the package raises bare Exception for whatever it cannot parse
            raise DataError(f"not a tokenizer's JSON ({_one_line(error)}): train it anew") from error
        if type(backend.model).__name__ not in _KIND_OF_MODEL:
            raise DataError(f"a {type(backend.model).__name__} tokenizer: only bpe, unigram and word are known")
        specials = tuple(backend.id_to_token(i) for i in range(len(SPECIAL_TOKENS)))
        if specials != SPECIAL_TOKENS:
            raise DataError(f"a tokenizer whose first ids are {specials}, not {SPECIAL_TOKENS}: train it anew")
        return cls(backend)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to `path`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "TextTokenizer":
        """Read what `save` wrote. Raises DataError, with the path, for a missing or damaged file."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:  # ValueError: not UTF-8, or the DataError of from_json
            raise DataError(f"cannot load the tokenizer {path}: {_one_line(error)}") from error


def readable(tokens: Iterable[str]) -> list[str]:
    """Tokens, as the vocabulary spells them, for people: without the mark of a word's beginning, or "␣" for it."""
    return [token.replace(WORD_START, "") or "␣" for token in tokens]


def _normalizer(lowercase: bool, mask_numbers: bool) -> normalizers.Normalizer:
    return normalizers.Sequence(
        ([normalizers.Lowercase()] if lowercase else [])
        + [
            normalizers.NFC(),  # after lower-casing, which can decompose (İ)
            normalizers.Replace(WORD_START, "_"),  # or it would decode to a space
            normalizers.Replace(Regex(r"[\s\x1c-\x1f]+"), " "),  # white space as str.split() has it
            normalizers.Strip(),
        ]
        + ([normalizers.Replace(Regex(NUMBER), NUMBER_MARK)] if mask_numbers else [])
    )


def _pre_tokenizer(masked_numbers: Literal["removed", "isolated"] | None) -> pre_tokenizers.PreTokenizer:
    """What cuts normalised text into words, marks and digits, and what it does with masked numbers if any."""
    number = Regex(f"{WORD_START}?{NUMBER_MARK}")
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(replacement=WORD_START, prepend_scheme="always")]
        + ([pre_tokenizers.Split(number, masked_numbers)] if masked_numbers else [])
        + [pre_tokenizers.Punctuation("isolated"), pre_tokenizers.Digits(individual_digits=True)]
    )


def _with_long_words_cut(text: str) -> str:
    """`text` with a space after each MAX_WORD characters that no white space, mark or digit interrupts.

    The trainers take the square of a word's length in time (bpe), or die of it (unigram: 100,000 letters).
    """
    if len(text) <= MAX_WORD or all(len(word) <= MAX_WORD for word in text.split(" ")):
        return text
    characters = []
    length = 0
    for character in text:
        ends_word = character.isspace() or character.isdigit() or unicodedata.category(character)[0] == "P"
        length = 0 if ends_word else length + 1
        if length > MAX_WORD:
            characters.append(" ")
            length = 1
        characters.append(character)
    return "".join(characters)


def _without_rare_characters(texts: list[str], room: int) -> list[str]:
    """`texts` with a space for each character that gets no entry, so that the trainer never sees it.

    Entries go to the characters that make up at least _MIN_CHARACTER_SHARE of the text, the commonest first,
    as many as there is room for. (The BPE trainer's `limit_alphabet` breaks ties at random and joins what
    stood left and right of a removed character; the unigram trainer has none.)
    """
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    threshold = _MIN_CHARACTER_SHARE * counts.total()
    del counts[" "], counts[NUMBER_MARK]
    ranked = sorted(counts, key=lambda character: (-counts[character], character))
    rare = [c for rank, c in enumerate(ranked) if rank >= room or counts[c] < threshold]
    if not rare:
        return texts
    rare_pattern = re.compile("[" + "".join(map(re.escape, rare)) + "]")
    return [rare_pattern.sub(" ", text) for text in texts]


def _canonical_unigram_vocab(
    vocab: list[tuple[str, float]], n_specials: int, vocab_size: int
) -> list[tuple[str, float]]:
    """The same unigram vocabulary whichever order the trainer met the words in, of at most `vocab_size` entries.

    The trainer sums over a randomly ordered hash map, so a score differs by about 1e-13 between two runs; and
    the characters that its EM pruned away get scores 1e-4 apart, from the lowest score upwards, in random
    order. Here those characters all get the lowest score, scores are rounded to four decimals, and equal
    scores are ordered by piece. The trainer also overshoots `vocab_size` where the characters alone fill it.
    """
    specials, pieces = vocab[:n_specials], vocab[n_specials:]
    characters = [(piece, score) for piece, score in pieces if len(piece) == 1]
    lowest = min(score for _, score in pieces)
    pruned_below = lowest + 1e-4 * len(characters)
    characters = [(piece, lowest if score < pruned_below else score) for piece, score in characters]
    longer = [(piece, score) for piece, score in pieces if len(piece) > 1]

    def ranked(entries: list[tuple[str, float]]) -> list[tuple[str, float]]:
        rounded = [(piece, round(score, 4)) for piece, score in entries]
        return sorted(rounded, key=lambda entry: (-entry[1], entry[0]))

    room = vocab_size - len(specials) - len(characters)
    return specials + ranked(characters + ranked(longer)[:room])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
