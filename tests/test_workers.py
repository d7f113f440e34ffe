"""Workers of pytest-xdist share out whole files: what a file makes once, nobody makes again."""

import os
import re
import subprocess
import sys
from collections import defaultdict

from tests.conftest import FIRST, REPOSITORY, SLURMS

FILES = "tests/jobs/reading/test_former.py", "tests/jobs/reading/test_gates.py"


def test_the_tests_of_a_file_run_in_one_worker() -> None:
    words = ["-n", "2", "-v", "-p", "no:cacheprovider", *FILES]
    outside = {key: value for key, value in os.environ.items() if "XDIST" not in key}
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=REPOSITORY,
        env=outside,
        capture_output=True,
        text=True,
        timeout=600,
    )
    workers = defaultdict(set)
    for worker, file in re.findall(r"^\[(gw\d)\].* PASSED (.*?)::", ran.stdout, re.MULTILINE):
        workers[file].add(worker)
    assert sorted(map(len, workers.values())) == [1, 1], ran.stdout
    assert set.union(*workers.values()) == {"gw0", "gw1"}


def test_what_is_named_for_the_order_is_there() -> None:
    slurms = [f"tests/slurm/{stem}.py" for files in SLURMS.values() for stem in files]
    files = slurms + [name for name in FIRST if "/" in name]
    assert [file for file in files if not (REPOSITORY / file).exists()] == []
