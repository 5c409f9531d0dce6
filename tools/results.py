"""Make README's table and results/README.md anew from the records.

python -m tools.results          # what `make results` does
"""

import sys

from tools.published.tables import write_tables
from training.cli import call_with_flags, run_tool
from training.errors import UsageError


def main() -> None:
    """Write README's table of results and results/README.md from results/records.yaml and the records."""
    try:
        write_tables()
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run_tool(lambda: call_with_flags(main))
