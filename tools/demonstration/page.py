"""The page as a whole: a tab for each script that runs were given of, its looks, and how it is served."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio

from tools.demonstration import classification, generation, segmentation, translation
from tools.demonstration.shown_run import ShownRun
from tools.demonstration.uploads import MAX_FILE_SIZE
from training.errors import UsageError

TABS: dict[str, tuple[str, Callable[[Sequence[ShownRun[Any]]], None]]] = {
    "translation": ("Translate", translation.add_tab),
    "unet": ("Segment", segmentation.add_tab),
    "cifar": ("Classify", classification.add_tab),
    "cvae": ("Draw", generation.add_tab),
}
TITLE = '<div class="title"><h1>onecycle</h1><p>Trained models, to try out.</p></div>'
KEPT_SECONDS = 3600  # of an uploaded file
MAX_WAITING = 20  # calls
MAX_SESSIONS = 50  # whose last picture is remembered


def build_page(runs: Sequence[tuple[str, ShownRun]]) -> gradio.Blocks:
    """The page of runs, each with its script's name. Those of one script stand side by side."""
    with gradio.Blocks(
        title="onecycle", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 6, KEPT_SECONDS)
    ) as page:
        gradio.HTML(TITLE)
        with gradio.Tabs():
            for script, (name, add_tab) in TABS.items():
                if mine := [run for of, run in runs if of == script]:
                    with gradio.Tab(name, id=script):
                        add_tab(mine)
    return page.queue(max_size=MAX_WAITING)


def serve(page: gradio.Blocks, host: str, port: int) -> str:
    """Begin to serve the page, in a thread; its address.

    No file is served but what the page itself shows and what was uploaded to it. Nothing is fetched from elsewhere,
    there is no public link, and calls go through the page alone. Raises UsageError where the port is not free.
    """
    fonts = ["system-ui", "sans-serif"]
    theme = gradio.themes.Default(
        primary_hue="teal", neutral_hue="slate", font=fonts, font_mono=["ui-monospace", "monospace"]
    )
    try:
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            share=False,
            allowed_paths=[],
            max_file_size=MAX_FILE_SIZE,
            state_session_capacity=MAX_SESSIONS,
            theme=theme,
            css_paths=Path(__file__).with_name("page.css"),
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            mcp_server=False,
            ssr_mode=False,
            pwa=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise UsageError(
            f"the page cannot be served at {host}:{port}: the port is taken, or no address of this machine; give "
            "another --port or --host"
        ) from error
    return address
