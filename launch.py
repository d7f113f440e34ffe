#!/usr/bin/env python3
"""The command of trainyard: `python launch.py --help`."""

from jobs.cli import command

if __name__ == "__main__":
    command()
