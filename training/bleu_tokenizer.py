"""Which of sacreBLEU's tokenizers scores a target language."""

from collections.abc import Sequence
from typing import Literal

import sacrebleu

from data.text.writing_systems import language_by_script
from training.errors import UsageError

BleuTokenizer = Literal[
    "auto",
    "13a",
    "zh",
    "ja-mecab",
    "ko-mecab",
    "char",
    "intl",
    "flores200",
    "flores101",
    "spm",
    "spBLEU-1K",
    "none",
]

_OF_LANGUAGE: dict[str, BleuTokenizer] = {
    "zh": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
}  # as the `sacrebleu` command has it by -l
_WITHOUT_SPACES = ("th", "lo", "my", "km", "bo", "dz")  # sacreBLEU has no tokenizer for any of these
_NAMES = {
    "zh": ("zho", "chi", "cmn", "yue", "wuu", "lzh", "chinese", "mandarin"),
    "ja": ("jpn", "japanese"),
    "ko": ("kor", "korean"),
    "th": ("tha", "thai"),
    "lo": ("lao",),
    "my": ("mya", "bur", "burmese"),
    "km": ("khm", "khmer"),
    "bo": ("bod", "tib", "tibetan"),
    "dz": ("dzo", "dzongkha"),
}
_CODES = {name: code for code, names in _NAMES.items() for name in (code, *names)}
_EXTRA = {
    "ja-mecab": "`pip install 'sacrebleu[ja]'`",
    "ko-mecab": "`pip install 'sacrebleu[ko]'`",
    "flores200": "`pip install sentencepiece`, and its model from the network",
    "flores101": "`pip install sentencepiece`, and its model from the network",
    "spm": "`pip install sentencepiece`, and its model from the network",
    "spBLEU-1K": "`pip install sentencepiece`, and its model from the network",
}


def choose_bleu_tokenizer(
    asked: BleuTokenizer, language: str, sentences: Sequence[str]
) -> tuple[BleuTokenizer, str]:
    """The tokenizer for BLEU, and a line for the user where it is not sacreBLEU's default, 13a ("" where it is).

    asked: a tokenizer of sacreBLEU, or "auto": that of the target language, as `sacrebleu -l` takes it. Where
        sacreBLEU lacks one for a language without spaces, or the package that it needs, "char".
    language: of the target: a code such as "zh", "zh-CN", "zho_Hans" or "cmn". Where it is none of those that
        need a tokenizer of their own, but `sentences` (the target text) are written like one, that one counts.

    Raises UsageError where the tokenizer that was asked for cannot be had.
    """
    if asked != "auto":
        missing = _why_missing(asked)
        if missing:
            raise UsageError(f"--bleu_tokenizer {asked} needs {_EXTRA.get(asked, missing)}: or take char")
        return asked, "" if asked == "13a" else f"BLEU by sacreBLEU's tokenizer {asked}"
    code = _CODES.get(language.casefold().replace("_", "-").split("-")[0], "")
    written = "" if code else language_by_script(sentences)
    code = code or written
    named = (
        f"The target text is written like {code}, not {language} (--languages)" if written else f"Target {language}"
    )
    if code in _WITHOUT_SPACES:
        return "char", (
            f"{named}: it has no spaces between words and sacreBLEU no tokenizer for it, so BLEU is by characters "
            "(--bleu_tokenizer char; flores200 is another choice, 13a what the sacrebleu command takes)"
        )
    if code not in _OF_LANGUAGE:
        return "13a", ""
    tokenizer = _OF_LANGUAGE[code]
    if _why_missing(tokenizer):
        return "char", (
            f"{named}: sacreBLEU's tokenizer {tokenizer} needs {_EXTRA[tokenizer]}, so BLEU is by characters "
            "(--bleu_tokenizer char)"
        )
    return tokenizer, f"{named}: BLEU by sacreBLEU's tokenizer {tokenizer}"


def _why_missing(tokenizer: str) -> str:
    """Why sacreBLEU cannot make the tokenizer; "" where it can."""
    try:
        sacrebleu.BLEU(tokenize=tokenizer)
    except (ImportError, RuntimeError, AssertionError, OSError, KeyError) as error:  # KeyError: an older sacreBLEU
        return " ".join(str(error).split()) or type(error).__name__
    return ""
