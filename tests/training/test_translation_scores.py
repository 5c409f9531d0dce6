import types
from pathlib import Path

import pytest
import sacrebleu

from training import translation_scores
from training.translation_scores import numbers, report_translations, score_translations, translate_in_shares

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
    assert set(numbers(found, "valid")) == {"valid/bleu", "valid/chrf", "valid/n_sentences"}


class SilentRun:
    """Notes what it is told."""

    def __init__(self, output_dir: Path, main: bool):
        self.output_dir, self.accelerator = output_dir, types.SimpleNamespace(is_main_process=main)
        self.logged, self.printed = [], []

    def log(self, *what):
        self.logged.append(what)

    def print(self, text):
        self.printed.append(text)

    def log_samples(self, inputs, outputs, targets, step, n):
        self.print(f"{inputs[0]} -> {outputs[0]} == {targets[0]}")


@pytest.mark.parametrize("main", [True, False])
def test_a_report_is_logged_printed_written_and_returned(tmp_path, main):
    run = SilentRun(tmp_path, main)
    metrics = {"nll": 1.5, **score_translations(HYPOTHESES, REFERENCES)}
    sources = ["Katze", "Hallo", "Regen – heute"]
    found = report_translations(run, "test_extra", metrics, sources, HYPOTHESES, REFERENCES, step=7, epoch=2)
    assert found == {f"test_extra/{name}": value for name, value in metrics.items()}
    assert run.logged == [(numbers(metrics, "test_extra"), 7, 2)]
    assert (
        f"test_extra BLEU {metrics['bleu']:.2f}" in run.printed[-1] and "3 test_extra sentences" in run.printed[-1]
    )
    assert "Katze -> The cat" in run.printed[0]
    written = {p.name: p.read_text(encoding="utf-8").splitlines() for p in tmp_path.rglob("*.txt")}
    expected = {"test_extra.src.txt": sources, "test_extra.hyp.txt": HYPOTHESES, "test_extra.ref.txt": REFERENCES}
    assert written == (expected if main else {})
