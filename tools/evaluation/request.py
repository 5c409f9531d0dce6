"""What to evaluate a run on, and how, as the command line says it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from training.errors import UsageError
from training.run_folder import writing

Split = Literal["test", "all"]
FLAGS_OF_SCRIPT = {
    "translation": ("test_files", "beam_size", "length_penalty"),
    "unet": ("data_dir", "split"),
    "cvae": ("data_dir", "split", "judge"),
    "cifar": ("data_dir", "split"),
}
DATA_OF_SCRIPT = {
    "translation": "sentences: give --test_files SOURCE TARGET",
    "unet": "pictures with masks: give --data_dir",
    "cvae": "labelled images: give --data_dir",
    "cifar": "labelled images: give --data_dir",
}


@dataclass(frozen=True)
class Request:
    data_dir: str = ""
    test_files: tuple[str, ...] = ()
    split: Split = "test"
    judge: str = ""
    beam_size: int | None = None
    length_penalty: float | None = None

    @property
    def data(self) -> list[str]:
        """The whole paths of the folder or of the files."""
        return [str(Path(path).absolute()) for path in (self.data_dir, *self.test_files) if path]

    def check(self, script: str) -> None:
        """Raise UsageError where a flag means nothing for the runs of a script, and where the data are missing."""
        nothing = Request()
        for name in vars(nothing):
            if name not in FLAGS_OF_SCRIPT[script] and getattr(self, name) != getattr(nothing, name):
                raise UsageError(
                    f"--{name} means nothing for a run of train_{script}.py, which is evaluated on "
                    f"{DATA_OF_SCRIPT[script]}"
                )
        if not self.data:
            raise UsageError(f"a run of train_{script}.py is evaluated on {DATA_OF_SCRIPT[script]}")


def figures_below(folder: Path) -> Path:
    """The folder of the figures in the folder of the results, made if need be."""
    with writing(folder):
        (folder / "figures").mkdir(parents=True, exist_ok=True)
    return folder / "figures"
