import pytest

from training.redaction import HIDDEN, redacted


def test_values_of_variables_that_hold_secrets_are_hidden(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "not-of-the-usual-form")
    monkeypatch.setenv("SHORT_TOKEN", "train")  # would be found in words
    text = redacted("--data_dir 0123456789abcdef/x not-of-the-usual-form train_cifar.py")
    assert text == f"--data_dir {HIDDEN}/x {HIDDEN} train_cifar.py"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:secret@host.org/a?b=c", f"https://{HIDDEN}@host.org/a?b=c"),
        ("https://token@host.org", f"https://{HIDDEN}@host.org"),
        ("https://host.org/user@example", "https://host.org/user@example"),
        ("hf_abcdefghijklmnopqrstuvwxyz", HIDDEN),
        ("hf_cache me@example.org runs/cifar/demo", "hf_cache me@example.org runs/cifar/demo"),
    ],
)
def test_addresses_lose_their_password_and_tokens_are_known_by_their_form(text, shown):
    assert redacted(text) == shown
