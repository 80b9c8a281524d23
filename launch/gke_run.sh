#!/usr/bin/env bash
# Runs a command on TPU slices of a GKE cluster that xpk has made.
#
#   CLUSTER=pods WORKLOAD=gpt2 TPU=v5litepod-64 IMAGE=us-docker.pkg.dev/project/repo/flaxlm \
#       launch/gke_run.sh train.py --config=configs/gpt2.py:124m --workdir=gs://bucket/runs/gpt2
#
# IMAGE is built from launch/Dockerfile. SLICES slices (default 1); RESTARTS of the whole workload
# (default 20) after a status of 127 to 255, of which 134 means that a process was lost.
set -euo pipefail

: "${CLUSTER:?name of the cluster}" "${WORKLOAD:?name of the run}"
: "${TPU:?such as v5litepod-64, v5p-128 or v6e-64}" "${IMAGE:?image of launch/Dockerfile}"
if [[ $# -eq 0 ]]; then
  echo "usage: CLUSTER=... launch/gke_run.sh train.py --config=... --workdir=gs://..." >&2
  exit 2
fi

xpk workload create --cluster="$CLUSTER" --workload="$WORKLOAD" --tpu-type="$TPU" \
  --num-slices="${SLICES:-1}" --docker-image="$IMAGE" --max-restarts="${RESTARTS:-20}" \
  --termination-grace-period-seconds="${GRACE:-120}" --command="python $(printf '%q ' "$@")"
