#!/usr/bin/env bash
# Brings what train_improved_full.sh learns from: LibriSpeech, 460 h to learn and 16 h to judge, 30 GB.
# It resumes, verifies, and takes seconds where all is there.
#
#   download_full_dataset.sh --cluster mine
#   download_full_dataset.sh --cluster local --wait   # on this machine: compute nodes lack internet
#
# The corpus goes to $TRAINYARD_DATA, else ./data. All further words go to the launcher:

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/launcher.sh" || {
  echo "start it with bash, not with sbatch: it submits what it needs itself" >&2
  exit 2
}
launcher run librispeech_improved --only corpus "$@"
