import ssl
import time

import datasets
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from data import hub
from data.errors import DataError
from data.hub import load_from_hub

WAYS_OUT = "or give --data_dir"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def with_load_dataset(monkeypatch, load_dataset, answers=True):
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_answers", lambda url: answers)


def test_without_network_the_error_is_quick_and_names_the_ways_out(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(DataError) as error:
        load_from_hub("nobody/no-such-data-set", ways_out=WAYS_OUT)
    assert time.perf_counter() - start < 10
    assert str(error.value) == (
        "cannot fetch nobody/no-such-data-set from the Hugging Face hub: "
        "check the name, connect to the network, or give --data_dir"
    )
    assert not hub._answers("http://127.0.0.1:9")
    assert constants.HF_HUB_OFFLINE is False


@pytest.mark.parametrize(("was_offline", "answers"), [(False, True), (False, False), (True, None)])
def test_the_client_is_offline_while_no_server_answers(monkeypatch, was_offline, answers):
    seen = []

    def load_dataset(*arguments, **options):
        seen.append((arguments, options, constants.HF_HUB_OFFLINE))
        return "the data set"

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", was_offline)
    with_load_dataset(monkeypatch, load_dataset, answers)
    assert load_from_hub("x/y", "en-it", revision="main", ways_out=WAYS_OUT) == "the data set"
    assert seen == [(("x/y", "en-it"), {"revision": "main"}, not answers)]
    assert constants.HF_HUB_OFFLINE is was_offline


@pytest.mark.parametrize(
    "error", [ConnectionError(), TimeoutError(), ssl.SSLError(), LocalEntryNotFoundError("not in the cache")]
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_errors_of_a_hub_out_of_reach_are_data_errors(monkeypatch, error, wrapped):
    def load_dataset(*arguments, **options):
        if wrapped:
            raise ValueError("no builder") from error
        raise error

    with_load_dataset(monkeypatch, load_dataset)
    with pytest.raises(DataError, match=r"cannot fetch x/y \(en-it\) from the Hugging Face hub: .*, or give"):
        load_from_hub("x/y", "en-it", ways_out=WAYS_OUT)
    assert constants.HF_HUB_OFFLINE is False


def test_errors_other_than_the_network_pass_through(monkeypatch):
    def load_dataset(*arguments, **options):
        raise ValueError("BuilderConfig 'en-xx' not found")

    with_load_dataset(monkeypatch, load_dataset)
    with pytest.raises(ValueError, match="BuilderConfig") as error:
        load_from_hub("x/y", "en-xx", ways_out=WAYS_OUT)
    assert not isinstance(error.value, DataError)


def test_a_data_set_that_the_hub_does_not_have_is_a_data_error(monkeypatch):
    def load_dataset(*arguments, **options):
        raise datasets.exceptions.DatasetNotFoundError("no such data set")

    with_load_dataset(monkeypatch, load_dataset)
    with pytest.raises(DataError, match="check the name"):
        load_from_hub("x/y", ways_out=WAYS_OUT)
