"""Keys and passwords, kept out of what a run writes, prints and sends."""

import os
import re

HIDDEN = "***"
_SECRET_VARIABLES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD)$", re.IGNORECASE)  # WANDB_API_KEY, HF_TOKEN
_SHORTEST_SECRET = 8  # characters; a shorter value would be found in ordinary words
_IN_AN_ADDRESS = re.compile(r"(?<=://)[^/\s@\"']+(?=@)")  # user:password@
_KNOWN_FORMS = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|wandb_v\d+_\w{20,}|gh[pousr]_[A-Za-z0-9]{20,})")


def redacted(text: str) -> str:
    """`text` without the values of environment variables that hold keys, tokens and passwords, without the user and
    the password of an address, and without what has the form of a token of the hub, of W&B or of GitHub.
    """
    for name, value in os.environ.items():
        if _SECRET_VARIABLES.search(name) and len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, HIDDEN)
    return _KNOWN_FORMS.sub(HIDDEN, _IN_AN_ADDRESS.sub(HIDDEN, text))
