#!/usr/bin/env bash
# Stops the run on a TPU slice: it saves, and ends with status 143.
#
#   NAME=flaxlm ZONE=us-west4-a launch/tpu_stop.sh
set -euo pipefail

: "${NAME:?name of the TPU}" "${ZONE:?zone, such as us-west4-a}"

# The brackets keep the pattern from matching the shell that it is written in.
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
  --command="pkill -TERM -f '[.]venv/bin/python (train|eval)[.]py' || true"
