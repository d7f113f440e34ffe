#!/usr/bin/env python3
"""The command of trainyard: `python launch.py --help`."""

from jobs.cli import leave, main, speak_utf8

if __name__ == "__main__":
    speak_utf8()
    leave(main())
