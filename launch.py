#!/usr/bin/env python3
"""The command of trainyard: `python launch.py --help`."""

import sys

from jobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
