"""Data sets of the Hugging Face hub, with one quick and clear error where it is out of reach."""

import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

from data.errors import DataError

if TYPE_CHECKING:
    import datasets

_PROBE_SECONDS = 5


def load_from_hub(
    dataset: str,
    config: str | None = None,
    *,
    ways_out: str,
    revision: str | None = None,
) -> "datasets.DatasetDict":
    """All splits of a hub data set, from the network or the local cache.

    dataset, config: such as "Helsinki-NLP/opus_books", "en-it".
    ways_out: what the user can do other than connect to the network, such as "or give --data_dir with a copy".
    revision: a branch, tag or commit of the data set. On "refs/convert/parquet", the hub's own copy of a data
        set that is a script, each config is a folder.

    Raises DataError where the hub does not have the data set, or cannot be reached and it is not in the local
    cache either, within seconds if no server answers. All other errors of `datasets` pass through.
    """
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    was_offline = constants.HF_HUB_OFFLINE
    # Without a network the hub's client retries for half a minute; told so, it turns to its cache at once.
    constants.HF_HUB_OFFLINE = was_offline or not _answers(constants.ENDPOINT)
    try:
        if revision == "refs/convert/parquet":
            return datasets.load_dataset(dataset, data_dir=config, revision=revision)
        return datasets.load_dataset(dataset, config, revision=revision)
    except Exception as error:
        expected = (
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
            LocalEntryNotFoundError,
            datasets.exceptions.DatasetNotFoundError,
        )
        if not any(isinstance(link, expected) for link in _chain(error)):
            raise
        name = dataset if config is None else f"{dataset} ({config})"
        raise DataError(
            f"cannot fetch {name} from the Hugging Face hub: check the name, connect to the network, {ways_out}"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _answers(url: str) -> bool:
    """Whether a server answers at `url` in a few seconds, if only with an error. Honours proxy variables."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # Python's certificates may be older than the client's
    except OSError:  # timed out while reading, or cut off
        return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
