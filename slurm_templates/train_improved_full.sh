#!/usr/bin/env bash
# Trains the improved recognizer (204 M parameters) on LibriSpeech, 464 h: brings the corpus, learns
# ten utterances by heart as a check, trains, evaluates.
#
#   train_improved_full.sh --cluster mine --dry-run
#   train_improved_full.sh --cluster mine --set train.resources.gpus=4
#
# All further words go to the launcher:

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/launcher.sh" || {
  echo "start it with bash, not with sbatch: it submits what it needs itself" >&2
  exit 2
}
launcher run librispeech_improved "$@"
