"""Which language a text is in, as far as its script tells, and what the scripts without spaces call a unit."""

import re
from collections.abc import Sequence

_SAMPLED = 1000  # sentences looked at
_KANA_SHARE = 0.1  # of kana and Chinese characters together, from which on a text is Japanese

_HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = "\u3041-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_UNSPACED = {
    "th": "\u0e01-\u0e7f",
    "lo": "\u0e80-\u0eff",
    "bo": "\u0f00-\u0fff",
    "my": "\u1000-\u109f",
    "km": "\u1780-\u17ff",
}
_SCRIPTS = {
    name: re.compile(f"[{characters}]")
    for name, characters in {
        "han": _HAN,
        "kana": _KANA,
        "ko": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3",
        **_UNSPACED,
    }.items()
}
_ALONE = _HAN + _KANA + "".join(_UNSPACED.values())  # characters that are units
_UNIT = re.compile(f"[{_ALONE}]|[^\\s{_ALONE}]+")


def language_by_script(sentences: Sequence[str]) -> str:
    """The language whose own script makes up more than half of the letters: "zh", "ja", "ko", or one of "th",
    "lo", "my", "km" and "bo", which are written without spaces like the first two; else "".
    """
    step = max(len(sentences) // _SAMPLED, 1)
    text = "".join(sentences[::step])
    counts = {name: len(script.findall(text)) for name, script in _SCRIPTS.items()}
    han, kana = counts.pop("han"), counts.pop("kana")
    counts["ja" if kana > _KANA_SHARE * (han + kana) else "zh"] = han + kana
    language = max(counts, key=lambda name: counts[name])
    # Vowel signs of the scripts looked for are no letters to Python, so these are counted by themselves.
    others = sum(map(str.isalpha, text)) - sum(
        sum(map(str.isalpha, script.findall(text))) for script in _SCRIPTS.values()
    )
    return language if 2 * counts[language] > sum(counts.values()) + others else ""


def units(sentence: str) -> list[str]:
    """The words of a sentence; of a script without spaces, each character is one."""
    return _UNIT.findall(sentence)
