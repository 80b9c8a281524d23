#!/usr/bin/env bash
# Runs the same command on every host of a TPU slice, and shows what they say.
#
#   NAME=flaxlm ZONE=us-west4-a launch/tpu_run.sh \
#       train.py --config=configs/gpt2.py:124m --workdir=gs://bucket/runs/gpt2
#
# Lasts as long as the run: start it in tmux. Interrupting it leaves the run going on; stop that by
# launch/tpu_stop.sh.
set -euo pipefail

: "${NAME:?name of the TPU}" "${ZONE:?zone, such as us-west4-a}"
if [[ $# -eq 0 ]]; then
  echo "usage: NAME=... ZONE=... launch/tpu_run.sh train.py --config=... --workdir=gs://..." >&2
  exit 2
fi

command=$(printf '%q ' "$@")
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
  --command="cd flaxlm && exec launch/restart.sh .venv/bin/python $command"
