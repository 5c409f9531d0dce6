"""What several processes must do alike, so that none waits for one that has ended."""

from collections.abc import Callable

from accelerate import Accelerator
from accelerate.utils import gather_object

from training.errors import UsageError


def raise_together(accelerator: Accelerator, problem: str | None) -> None:
    """Raise UsageError in every process where any of them has a problem. All processes call, and wait."""
    if accelerator.num_processes > 1:
        problem = next((found for found in gather_object([problem]) if found), None)
    if problem:
        raise UsageError(problem)


def on_main_process(accelerator: Accelerator, do: Callable[[], None]) -> None:
    """Call `do` on the main process, the others wait; a UsageError of it is raised in every process."""
    problem = None
    if accelerator.is_main_process:
        try:
            do()
        except UsageError as error:
            problem = str(error)
    raise_together(accelerator, problem)
