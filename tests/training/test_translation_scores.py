import types
from pathlib import Path

import pytest
import sacrebleu

from training import translation_scores
from training.metrics import prefixed
from training.translation_scores import (
    Translations,
    is_better,
    report_translations,
    score_translations,
    scores_without_near_duplicates,
    translate_in_shares,
)

HYPOTHESES = ["The cat sat on a mat .", "Hello, world!", "It rains today."]
REFERENCES = ["The cat sat on the mat.", "Hello, world!", "It is raining today."]


def process(index: int, n: int):
    return types.SimpleNamespace(process_index=index, num_processes=n)


def words(chosen: range) -> list[str]:
    return [f"sentence {i}" for i in chosen]


@pytest.mark.parametrize("n_processes", [1, 2, 3])
@pytest.mark.parametrize("n_sentences", [0, 1, 7])
def test_each_sentence_is_translated_once_and_all_come_in_order(monkeypatch, n_processes, n_sentences):
    shares = [
        [(i, f"sentence {i}") for i in range(n_sentences) if i % n_processes == rank] for rank in range(n_processes)
    ]

    def gather(mine):
        assert mine in shares
        return [pair for share in reversed(shares) for pair in share]

    monkeypatch.setattr(translation_scores, "gather_object", gather)
    for rank in range(n_processes):
        found = translate_in_shares(process(rank, n_processes), n_sentences, words)
        assert found == [f"sentence {i}" for i in range(n_sentences)]


@pytest.mark.parametrize("gathered", [[(0, "a"), (0, "a"), (1, "b")], [(0, "a")], [(0, "a"), (2, "c")]])
def test_a_sentence_that_comes_twice_or_not_at_all_is_an_error(monkeypatch, gathered):
    monkeypatch.setattr(translation_scores, "gather_object", lambda mine: gathered)
    with pytest.raises(RuntimeError, match="were gathered"):
        translate_in_shares(process(0, 2), 2, words)


def test_the_scores_are_those_of_sacrebleu():
    found = score_translations(HYPOTHESES, REFERENCES)
    assert found["bleu"] == sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score
    assert found["chrf"] == sacrebleu.corpus_chrf(HYPOTHESES, [REFERENCES]).score
    assert found["n_sentences"] == 3 and "case:mixed" in found["bleu_signature"]
    assert score_translations(REFERENCES, REFERENCES)["bleu"] == pytest.approx(100)
    assert set(prefixed("valid", found)) == {
        "valid/bleu",
        "valid/brevity_penalty",
        "valid/chrf",
        "valid/n_sentences",
    }


class SilentRun:
    """Notes what it is told."""

    def __init__(self, output_dir: Path, main: bool):
        self.output_dir, self.accelerator = output_dir, types.SimpleNamespace(is_main_process=main)
        self.logged, self.printed = [], []

    def log(self, *what):
        self.logged.append(what)

    def print(self, text):
        self.printed.append(text)

    def log_samples(self, split, inputs, outputs, targets, step, n):
        self.print(f"{inputs[0]} -> {outputs[0]} == {targets[0]}")


@pytest.mark.parametrize("main", [True, False])
def test_a_report_is_logged_printed_written_and_returned(tmp_path, main):
    run = SilentRun(tmp_path, main)
    sources = ["Katze", "Hallo", "Regen – heute"]
    translations = Translations(sources, HYPOTHESES, REFERENCES)
    near = {"near_duplicates": 1 / 3, "bleu_without_near_duplicates": 12.345}
    metrics = {"nll": 1.5, **score_translations(HYPOTHESES, REFERENCES), **near}
    found = report_translations(run, "test_extra", metrics, translations, step=7, epoch=2)
    assert found == {f"test_extra/{name}": value for name, value in metrics.items()}
    assert run.logged == [(prefixed("test_extra", metrics), 7, 2)]
    shown = run.printed[-1]
    assert f"test_extra BLEU {metrics['bleu']:.2f}" in shown and "3 test_extra sentences" in shown
    assert "33.3%" in shown and "BLEU 12.35 on the other 2" in shown and "lower case" not in shown
    assert "Katze -> The cat" in run.printed[0]
    written = {p.name: p.read_text(encoding="utf-8").splitlines() for p in tmp_path.rglob("*.txt")}
    expected = {"test_extra.src.txt": sources, "test_extra.hyp.txt": HYPOTHESES, "test_extra.ref.txt": REFERENCES}
    assert written == (expected if main else {})


def test_lower_cased_text_is_said_to_be_so():
    lower = [[line.lower() for line in lines] for lines in (HYPOTHESES, REFERENCES)]
    found, plain = score_translations(*lower, lowercase=True), score_translations(*lower)
    assert "|case:lc|" in found["bleu_signature"] and "|case:lc|" in found["chrf_signature"]
    assert (found["bleu"], found["chrf"]) == (plain["bleu"], plain["chrf"])


def test_a_tokenizer_splits_what_has_no_spaces_and_the_signature_tells():
    hypotheses, references = ["老师买了一本旧书。"], ["医生买了一本旧书。"]
    assert score_translations(hypotheses, references)["bleu"] == 0
    found = score_translations(hypotheses, references, "zh")
    assert found["bleu"] == sacrebleu.corpus_bleu(hypotheses, [references], tokenize="zh").score > 50
    assert "|tok:zh|" in found["bleu_signature"]


def values(bleu: float, chrf: float, nll: float) -> dict[str, float]:
    return {"bleu": bleu, "chrf": chrf, "nll": nll}


def test_bleu_decides_and_chrf_while_bleu_says_nothing():
    assert is_better(values(30.1, 40, 2), values(30.0, 50, 1))
    assert is_better(values(0, 12, 3), values(0, 11, 2)) and not is_better(values(0, 11, 2), values(0, 12, 3))
    assert is_better(values(0.2, 12, 3), values(0.9, 11, 2))
    assert is_better(values(1.0, 5, 3), values(0.9, 11, 2))
    assert not is_better(values(0.9, 11, 2), values(1.0, 5, 3))
    assert is_better(values(100, 9, 1), values(100, 10, 2)) and not is_better(values(0, 1, 2), values(0, 1, 2))


def test_near_duplicates_are_left_out_of_the_second_bleu():
    translations = Translations(["A cat sat.", "It rains.", "We all sleep late today."], HYPOTHESES, REFERENCES)
    found = scores_without_near_duplicates(translations, ["a dog sat", "Nothing alike here", "We all sleep late"])
    assert found["near_duplicates"] == pytest.approx(2 / 3)
    rest = score_translations(HYPOTHESES[1:2], REFERENCES[1:2])
    assert found["bleu_without_near_duplicates"] == rest["bleu"]
    assert scores_without_near_duplicates(translations, translations.sources) == {"near_duplicates": 1.0}


def test_a_report_where_all_are_near_duplicates(tmp_path):
    run = SilentRun(tmp_path, True)
    metrics = {**score_translations(HYPOTHESES, REFERENCES), "near_duplicates": 1.0}
    report_translations(run, "test", metrics, Translations(["a", "b", "c"], HYPOTHESES, REFERENCES), 1, 1)
    assert "100.0%" in run.printed[-1] and "none is left" in run.printed[-1]
