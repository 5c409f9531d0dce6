"""A run as the page shows it: the tool that does its work, and what stands above its results."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from tools.classify import Classifier
from tools.sample import Sampler
from tools.segment import Segmenter
from tools.translate import Translator
from training.checkpoints import checkpoint_of_run
from training.finished_run import FinishedRun, script_of_run

T = TypeVar("T", Translator, Segmenter, Classifier, Sampler)

TOOLS: dict[str, Callable[[Path], Any]] = {
    "translation": Translator,
    "unet": Segmenter,
    "cifar": Classifier,
    "cvae": Sampler,
}
SCORES: dict[str, Sequence[tuple[str, str]]] = {  # of each script: names in summary.json, and how they are written
    "translation": (("test/bleu", "BLEU {:.1f}"), ("test/chrf", "chrF {:.1f}")),
    "unet": (("test/dice", "Dice {:.3f}"), ("test/iou", "IoU {:.3f}")),
    "cifar": (("test/accuracy", "accuracy {:.1%}"),),
    "cvae": (("test/elbo", "ELBO {:.1f} nats"), ("test/wrong_label_hits", "wrong-label hits {:.0%}")),
}


@dataclass(frozen=True)
class ShownRun(Generic[T]):
    """A finished run with its tool."""

    tool: T
    name: str
    folder: Path
    facts: Sequence[str]  # test scores, recipe, size

    def heading(self) -> str:
        """The run's name and facts, as HTML."""
        facts = "".join(f"<span>{html.escape(fact)}</span>" for fact in self.facts)
        return f'<div class="run"><b>{html.escape(self.name)}</b>{facts}</div>'


def open_shown_run(run: str | Path) -> tuple[str, ShownRun]:
    """The script that a run folder, or one checkpoint, is of, and the run. Raises UsageError if there is none."""
    script, checkpoint = script_of_run(run), checkpoint_of_run(run)
    tool = TOOLS[script](checkpoint)
    finished = FinishedRun(script, checkpoint, tool.config)
    n_parameters = sum(parameter.numel() for parameter in tool.model.parameters())
    facts = [written.format(finished.summary[key]) for key, written in SCORES[script] if key in finished.summary]
    facts += [f"recipe {tool.config.recipe}", f"{n_parameters / 1e6:.1f} M parameters"]
    name = "/".join(finished.folder.parts[-2:])
    return script, ShownRun(tool, name, finished.folder, facts)
