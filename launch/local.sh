#!/usr/bin/env bash
# Runs a command as several processes of this machine's CPU, to try what a run on several hosts does.
#
#   launch/local.sh 2 python train.py --config=configs/quickstart.py --workdir=runs/two
#
# Ends when all have ended, with the status of the first one that failed.
set -euo pipefail

if [[ $# -lt 2 || ! $1 =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh PROCESSES COMMAND..." >&2
  exit 2
fi
count=$1
shift

export JAX_PLATFORMS=cpu
export JAX_NUM_PROCESSES=$count
export JAX_COORDINATOR_ADDRESS=127.0.0.1:${PORT:-$((20000 + RANDOM % 10000))}

pids=()
trap '[[ ${#pids[@]} -eq 0 ]] || kill -TERM "${pids[@]}" 2> /dev/null || true' INT TERM
for ((i = 0; i < count; i++)); do
  JAX_PROCESS_ID=$i "$@" &
  pids+=($!)
done

status=0
for pid in "${pids[@]}"; do
  ended=0
  # A signal ends `wait` itself, with a status above 128, while the process still saves.
  wait "$pid" || ended=$?
  while kill -0 "$pid" 2> /dev/null; do
    ended=0
    wait "$pid" || ended=$?
  done
  [[ $status -ne 0 ]] || status=$ended
done
exit "$status"
