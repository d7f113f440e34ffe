"""What a user calls us: `trainyard` where it is installed, `launch.py` in a checkout.

A job does not know: what it writes down names commands alone, "`resume` goes on from there".
"""

import sys
from pathlib import Path

NAME = "trainyard" if Path(sys.argv[0]).name == "trainyard" else "launch.py"
