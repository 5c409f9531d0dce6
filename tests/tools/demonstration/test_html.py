import pytest
import torch

pytest.importorskip("gradio", reason="gradio is missing: pip install -r requirements-optional.txt")

import gradio

from data.errors import DataError
from tools.demonstration.classification import views_as_html
from tools.demonstration.generation import pictures_as_html, relabelled_as_html
from tools.demonstration.messages import told_in_a_line
from tools.demonstration.segmentation import legend
from tools.demonstration.translation import (
    MOST_SHOWN,
    Alternative,
    Translated,
    alternatives_as_html,
    attention_as_html,
)

NAME = "<img src=x onerror=alert(1)>"  # of a class, a run, a file, or what a model says
ESCAPED = "&lt;img src=x onerror=alert(1)&gt;"


def test_no_name_and_no_text_is_taken_for_html():
    two_others = [Alternative(NAME, 0.5), Alternative(NAME, 0.002)]
    shown = [
        alternatives_as_html(two_others),
        attention_as_html(Translated(two_others, torch.ones(1, 2) / 2, [NAME, "end"], [NAME])),
        legend(torch.ones(4, 4), ["background", NAME]),
        views_as_html(torch.zeros(6, 3, 8, 8).byte(), torch.ones(6, 1), [NAME]),
        pictures_as_html([(NAME, torch.zeros(2, 1, 8, 8))]),
        relabelled_as_html(torch.zeros(3, 8, 8).byte(), torch.zeros(1, 3, 8, 8), [NAME]),
    ]
    for html in shown:
        assert NAME not in html and ESCAPED in html


def test_a_message_is_text_too():
    @told_in_a_line
    def refuse() -> None:
        raise DataError(f"{NAME}: no picture")

    with pytest.raises(gradio.Error) as told:
        refuse()
    assert told.value.message == f"{ESCAPED}: no picture"


def test_what_is_improbable_or_long_is_said_in_words():
    assert "&lt; 1%" in alternatives_as_html([Alternative("a", 0.5), Alternative("b", 0.002)])
    assert "no other translation" in alternatives_as_html([Alternative("a", 0.5)])
    long = Translated([], torch.zeros(MOST_SHOWN + 1, 2), ["a", "end"], ["b"] * (MOST_SHOWN + 1))
    assert "too long" in attention_as_html(long)
    assert "nothing but background" in legend(torch.zeros(4, 4), ["background", "ball", "box"])
