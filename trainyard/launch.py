"""The command `trainyard`: what launch.py is in a checkout.

A wheel puts our packages inside this folder: at the top of site-packages their names (`jobs`,
`distill`) could be anybody's. They are looked for here first. A checkout has them beside it.
"""

import sys
from pathlib import Path


def main() -> None:
    """Run one command and end with its exit code."""
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from jobs.cli import command

    command()


if __name__ == "__main__":
    main()
