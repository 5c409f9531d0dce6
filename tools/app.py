"""Try finished runs in the browser: `python -m tools.app RUN [RUN ..]` serves a page, on this machine alone.

Translations with alternatives and attention; masks at any threshold; classes of a picture; pictures drawn for a
label, and one's own digit under every label. Runs of one script stand side by side. It needs Gradio:
requirements-optional.txt.
"""

import os
import signal
import sys
import tempfile
import threading
from typing import Annotated

import tyro
from tyro.conf import Positional

from data.errors import DataError
from training.cli import PathFlag, call_with_flags, run_tool
from training.errors import UsageError
from training.ranges import Port

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def main(
    runs: Positional[tuple[PathFlag, ...]],
    host: Annotated[str, tyro.conf.arg(help="address that is listened at; 0.0.0.0: from other machines too")] = (
        "127.0.0.1"
    ),
    port: Annotated[Port, tyro.conf.arg(help="port of the page")] = 7860,
) -> None:
    """Serve a page on which to try finished runs, until Ctrl-C.

    Args:
        runs: run folders, or checkpoints, of any of the scripts
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="onecycle-app-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            page = _page_of(runs)
            from tools.demonstration.page import serve

            address = serve(page, host, port)
        except (UsageError, DataError) as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        if host not in LOOPBACK:
            print(f"warning: whoever reaches {host} can use the page", file=sys.stderr)
        print(f"{address} (end with Ctrl-C)", flush=True)
        try:
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def _page_of(runs: tuple[str, ...]):
    if not runs:
        raise UsageError("no run is named: give the folders of finished runs, as runs/translation/demo")
    try:
        from tools.demonstration.page import build_page
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise UsageError("gradio is missing: pip install -r requirements-optional.txt") from error
    from tools.demonstration.shown_run import open_shown_run

    return build_page([open_shown_run(run) for run in runs])


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
