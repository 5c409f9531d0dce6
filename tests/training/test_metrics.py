import json
from pathlib import Path

import pytest

from training.errors import UsageError
from training.metrics import METRICS, better_by, metric, prefixed, read_metrics, readable_name, shown


def write_metrics(path: Path, rows: list[dict], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + tail, encoding="utf-8")
    return path


# --- what is known of a metric


@pytest.mark.parametrize(
    ("name", "label", "more_is_better"),
    [
        ("valid/bleu", "BLEU", True),
        ("bleu", "BLEU", True),
        ("test_extra/chrf", "chrF", True),
        ("valid/nll", "negative log-likelihood", False),
        ("test/dice_border", "Dice border", True),  # of a class
        ("test/iou_per_image", "IoU per image", True),
        ("test/accuracy_views", "accuracy over test-time views", True),
        ("valid/token_accuracy", "token accuracy", True),
        ("valid/exact_match", "exact match", True),
        ("test/pixel_accuracy", "pixel accuracy", True),
        ("test/classifier_accuracy", "accuracy of the judge", True),  # the longest entry, not "accuracy"
        ("test/bleu_without_near_duplicates", "BLEU without near-duplicates", True),
        ("train/tokens_per_second", "tokens per second", False),
        ("valid/perplexity", "perplexity", False),
    ],
)
def test_a_name_is_known_by_the_longest_entry_that_it_holds(name, label, more_is_better):
    assert (metric(name).label, metric(name).more_is_better) == (label, more_is_better)


@pytest.mark.parametrize("name", METRICS)
def test_each_entry_knows_itself(name):
    assert metric(f"test/{name}") == METRICS[name]


def test_a_readable_name_says_the_split():
    assert readable_name("train/tokens_per_second") == "training: tokens per second"
    assert readable_name("valid/bleu") == "validation: BLEU"
    assert readable_name("test_extra/bleu") == "second test set: BLEU"
    assert readable_name("lr") == "learning rate"
    assert readable_name("best/step") == "best: step"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("test/accuracy", 0.93514, "93.51 %"),
        ("test/bleu", 31.25, "31.2"),
        ("test/dice_views", 0.92651, "0.9265"),
        ("test/elbo", -9238.789, "-9,238.79 nats"),
        ("train_seconds", 90.0, "1.5 min"),
        ("n_parameters", 25_882, "25,882"),
        ("test/hits", 0.7512345, "0.75123"),  # of an unknown one five digits
        ("test/n_sentences", 205, "205"),
    ],
)
def test_a_value_is_shown_with_its_digits_and_unit(name, value, text):
    assert shown(name, value) == text


# --- the better of two


def test_better_is_more_or_less_as_the_metric_is_meant():
    assert better_by("bleu")({"bleu": 31.0}, {"bleu": 30.0})
    assert not better_by("bleu")({"bleu": 30.0}, {"bleu": 31.0})
    assert better_by("nll")({"nll": 2.0}, {"nll": 2.5})
    assert not better_by("nll")({"nll": 2.5}, {"nll": 2.0})


def test_of_a_metric_that_no_table_knows_a_sign_says_whether_more_is_better():
    more, less = {"boundary_f1": 0.9}, {"boundary_f1": 0.1}
    assert better_by("+boundary_f1")(more, less) and not better_by("+boundary_f1")(less, more)
    assert better_by("-boundary_f1")(less, more) and better_by("-accuracy")({"accuracy": 0.1}, {"accuracy": 0.2})
    with pytest.raises(ValueError, match=r"\+boundary_f1"):
        better_by("boundary_f1")


def test_a_best_of_before_there_was_the_metric_is_beaten():
    assert better_by("dice", "loss")({"dice": 0.5, "loss": 1.0}, {"loss": 0.1})


def test_a_tie_is_decided_by_the_next_name_and_else_the_best_stays():
    better = better_by("accuracy", "loss")
    best = {"step": 7, "accuracy": 0.5, "loss": 1.0}
    assert better({"accuracy": 0.5, "loss": 0.9}, best)
    assert not better({"accuracy": 0.5, "loss": 1.1}, best)
    assert not better({"accuracy": 0.5, "loss": 1.0}, best)
    assert not better({"accuracy": 0.4, "loss": 0.1}, best)


def test_what_is_not_a_number_is_no_value_for_the_log():
    assert prefixed("test", {"bleu": 1.5, "signature": "nrefs:1"}) == {"test/bleu": 1.5}


# --- reading metrics.jsonl


def test_lines_of_a_step_become_one_row_and_later_ones_count(tmp_path):
    rows = [{"step": 2, "a": 1, "b": 1}, {"step": 1, "a": 0}, {"step": 2, "a": 5}]
    assert read_metrics(write_metrics(tmp_path / "m.jsonl", rows)) == [
        {"step": 1, "a": 0},
        {"step": 2, "a": 5, "b": 1},
    ]


@pytest.mark.parametrize("cut", ['{"step": 2, "tra', '{"step": 2, "name": "caff\udcc3', "{"])
def test_a_truncated_last_line_is_passed_over(tmp_path, cut):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"step": 1, "lr": 1.0}\n' + cut.encode("utf-8", "surrogateescape"))
    assert read_metrics(path) == [{"step": 1, "lr": 1.0}]


def test_a_whole_last_line_without_newline_counts(tmp_path):
    path = write_metrics(tmp_path / "m.jsonl", [{"step": 1}], tail='{"step": 2}')
    assert read_metrics(path) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("line", ['{"step": 2, "tra', "", "[1, 2]", '{"lr": 1.0}', '{"step": "2"}', "nonsense"])
def test_any_other_broken_line_is_an_error(tmp_path, line):
    path = write_metrics(tmp_path / "m.jsonl", [{"step": 1}], tail=f'{line}\n{{"step": 3}}\n')
    with pytest.raises(UsageError, match=r"m\.jsonl, line 2: .*delete the line") as caught:
        read_metrics(path)
    assert "\n" not in str(caught.value)


def test_a_broken_last_line_that_was_finished_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="line 2"):
        read_metrics(write_metrics(tmp_path / "m.jsonl", [{"step": 1}], tail='{"step": 2, "tra\n'))
