#!/usr/bin/env bash
# Gives a TPU slice back: the queued resource and its machines.
#
#   NAME=flaxlm ZONE=us-west4-a launch/tpu_delete.sh
set -euo pipefail

: "${NAME:?name of the TPU}" "${ZONE:?zone, such as us-west4-a}"

gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
