#!/usr/bin/env bash
# Asks for a TPU slice by a queued resource, and returns when it is there.
#
#   NAME=flaxlm ZONE=us-west4-a ACCELERATOR=v5litepod-64 launch/tpu_create.sh --spot
#
# Further arguments go to `gcloud compute tpus queued-resources create`: --spot, --reserved,
# --service-account=..., --network=..., --valid-until-duration=...
set -euo pipefail

: "${NAME:?name of the TPU}" "${ZONE:?zone, such as us-west4-a}"
: "${ACCELERATOR:?such as v5litepod-64, v5p-128 or v6e-64}"

case $ACCELERATOR in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v4-*) runtime=tpu-ubuntu2204-base ;;
  *)
    echo "launch/tpu_create.sh: set RUNTIME, the software version for $ACCELERATOR" >&2
    runtime=
    ;;
esac
runtime=${RUNTIME:-$runtime}
[[ -n $runtime ]] || exit 2

gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
  --accelerator-type="$ACCELERATOR" --runtime-version="$runtime" "$@"

last=
while true; do
  state=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" \
    --format='value(state.state)')
  if [[ $state != "$last" ]]; then
    echo "$(date +%T) $state"
    last=$state
  fi
  case $state in
    ACTIVE) exit 0 ;;
    FAILED | SUSPENDED | SUSPENDING | DELETING)
      echo "launch/tpu_create.sh: $NAME is $state; launch/tpu_delete.sh, and ask again" >&2
      exit 1
      ;;
  esac
  sleep "${PAUSE:-30}"
done
