#!/usr/bin/env bash
# Transcribes a few utterances with a trained model and scores them.
#
#   test_inference.sh --checkpoint-dir runs/RUN/steps/train --test-subset dev-clean --num-samples 20
#
# All further words go to the launcher:

set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$(readlink -f "$0")")/launcher.sh" || {
  echo "start it with bash, not with sbatch: it submits what it needs itself" >&2
  exit 2
}
launcher infer "$@"
