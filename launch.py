#!/usr/bin/env python3
"""The command of trainyard: `python launch.py --help`."""

from jobs.cli import leave, main

if __name__ == "__main__":
    leave(main())
