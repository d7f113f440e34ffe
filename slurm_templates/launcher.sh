# shellcheck shell=bash
# Sourced by the scripts beside it. `launcher WORD...` becomes the launcher that they came with, run
# by $PYTHON, by the virtual environment that `make` has set up, or by that which is active.
# With --help the script's own opening comment comes first.
launcher() {
  local here python word
  here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
  python=$here/../.venv/bin/python
  [ -x "$python" ] || python=python3
  for word in "$@"; do
    case $word in -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" ;; esac
  done
  exec "${PYTHON:-$python}" "$here/../launch.py" "$@"
}
