import typing

import pytest
import sacrebleu

from training import bleu_tokenizer
from training.bleu_tokenizer import BleuTokenizer, choose_bleu_tokenizer
from training.errors import UsageError

ITALIAN, CHINESE, THAI = ["Ciao a tutti."], ["老师买了一本旧书。"], ["ครูซื้อจักรยานสีแดง"]


@pytest.fixture
def with_all_packages(monkeypatch):
    monkeypatch.setattr(bleu_tokenizer, "_why_missing", lambda tokenizer: "")


@pytest.fixture
def without_extra_packages(monkeypatch):
    monkeypatch.setattr(
        bleu_tokenizer, "_why_missing", lambda tokenizer: "" if tokenizer in ("13a", "zh", "char") else "MeCab"
    )


def test_the_choices_are_those_of_sacrebleu():
    assert set(typing.get_args(BleuTokenizer)) >= {"auto", *sacrebleu.BLEU.TOKENIZERS}


@pytest.mark.parametrize("language", ["zh", "zh-CN", "zh_cn", "zh-Hans", "zho_Hans", "cmn", "yue", "Chinese"])
def test_codes_of_chinese(language):
    assert choose_bleu_tokenizer("auto", language, ITALIAN)[0] == "zh"


@pytest.mark.parametrize(
    ("language", "tokenizer"), [("ja", "ja-mecab"), ("jpn_Jpan", "ja-mecab"), ("ko", "ko-mecab")]
)
def test_languages_with_a_tokenizer_of_their_own(with_all_packages, language, tokenizer):
    assert choose_bleu_tokenizer("auto", language, ITALIAN)[0] == tokenizer


@pytest.mark.parametrize(("language", "package"), [("ja", "sacrebleu[ja]"), ("kor", "sacrebleu[ko]")])
def test_without_its_package_the_line_says_which_and_what_was_taken(without_extra_packages, language, package):
    tokenizer, note = choose_bleu_tokenizer("auto", language, ITALIAN)
    assert tokenizer == "char" and package in note and "by characters" in note and "\n" not in note


@pytest.mark.parametrize("language", ["it", "en", "ru", "zhx", ""])
def test_other_languages_are_scored_as_ever_in_silence(language):
    assert choose_bleu_tokenizer("auto", language, ITALIAN) == ("13a", "")


def test_a_forgotten_language_shows_in_the_script():
    tokenizer, note = choose_bleu_tokenizer("auto", "it", CHINESE)
    assert tokenizer == "zh" and "written like zh, not it" in note


@pytest.mark.parametrize(("language", "text"), [("th", ITALIAN), ("tha", THAI), ("it", THAI)])
def test_no_spaces_and_no_tokenizer(language, text):
    tokenizer, note = choose_bleu_tokenizer("auto", language, text)
    assert tokenizer == "char" and "flores200" in note and "13a" in note


def test_a_tokenizer_that_was_asked_for_is_taken_or_refused(without_extra_packages):
    assert choose_bleu_tokenizer("13a", "zh", CHINESE) == ("13a", "")
    assert choose_bleu_tokenizer("char", "it", ITALIAN)[0] == "char"
    with pytest.raises(UsageError, match=r"--bleu_tokenizer ja-mecab needs .*sacrebleu\[ja\]"):
        choose_bleu_tokenizer("ja-mecab", "ja", ITALIAN)


def test_what_sacrebleu_raises_is_a_reason(monkeypatch):
    for error in (RuntimeError("no MeCab"), ImportError("no sentencepiece"), OSError("no network")):

        def fail(error=error, **options):
            raise error

        monkeypatch.setattr(sacrebleu, "BLEU", fail)
        assert bleu_tokenizer._why_missing("ja-mecab") == str(error)
