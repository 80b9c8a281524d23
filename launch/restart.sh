#!/usr/bin/env bash
# Runs a command, and runs it again when a process of the run was lost. For every host of a run.
#
#   launch/restart.sh python train.py --config=... --workdir=gs://...
#
# Again after 134 (another process was lost), 137 (killed, often for memory) and 139 (a crash in
# native code), RESTARTS times at most (default 20). Not after 1, an error that would come again,
# nor after 143: this machine is being taken away.
set -uo pipefail

left=${RESTARTS:-20}
child=
stopped=
trap 'stopped=1; [[ -z $child ]] || kill -TERM "$child" 2> /dev/null' TERM INT
while true; do
  "$@" &
  child=$!
  [[ -z $stopped ]] || kill -TERM "$child" 2> /dev/null  # the signal came before the number
  status=0
  wait "$child" || status=$?
  while kill -0 "$child" 2> /dev/null; do  # `wait` was ended by a signal that was passed on
    status=0
    wait "$child" || status=$?
  done
  case $status in
    134 | 137 | 139) [[ -z $stopped ]] || exit "$status" ;;
    *) exit "$status" ;;
  esac
  if ((left == 0)); then
    echo "launch/restart.sh: status $status, and no restart is left" >&2
    exit "$status"
  fi
  left=$((left - 1))
  echo "launch/restart.sh: status $status; starting again, $left restarts left" >&2
  sleep "${PAUSE:-10}"
done
