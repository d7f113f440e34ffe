#!/bin/bash
# Submits the steps of pipeline.yaml beside it, each behind its needs, written by `render`. Once: a
# second call finds what the first has written down, and submits nothing.
# shellcheck disable=SC2154 # the lines below this template say which program
set -euo pipefail
cd "$(dirname "$0")"
declare -A job # step -> id

# submit STEP TOKEN NEED...: the intent is on disk, with the job's name, before the job can exist.
submit() {
  local step=$1 token=$2 record=steps/$1/submissions.jsonl after="" said need
  shift 2
  if [ -e "$record" ]; then
    echo "$step was submitted, or tried, before. Look: $program status $PWD" >&2
    echo "To submit what is left, and nothing twice: $program resume $PWD" >&2
    exit 2
  fi
  for need in "$@"; do after+=:${job[$need]}; done

  set -o noclobber # of two calls at once, one ends here
  printf '{"token": "%s", "time": %s}\n' "$token" "$(date +%s)" >"$record"
  set +o noclobber
  sync "$record"
  said=$(sbatch --parsable ${after:+"--dependency=afterok$after"} "$step.sbatch")
  job[$step]=$(sed -nE 's/^([0-9]+)(;.*)?$/\1/p' <<<"$said" | tail -n 1) # a banner may come first
  if [ -z "${job[$step]}" ]; then
    echo "sbatch has not named a job for $step: $said" >&2
    echo "When it answers as it should: $program resume $PWD" >&2
    exit 1
  fi
  printf '{"token": "%s", "time": %s, "job": "%s"}\n' "$token" "$(date +%s)" "${job[$step]}" >>"$record"
  echo "$step ${job[$step]}"
}
