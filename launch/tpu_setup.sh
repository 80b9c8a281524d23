#!/usr/bin/env bash
# Copies the last commit to every host of a TPU slice and installs what it needs there.
#
#   NAME=flaxlm ZONE=us-west4-a launch/tpu_setup.sh
#
# The machines' own Python may be older than flaxlm needs; uv brings one.
set -euo pipefail

: "${NAME:?name of the TPU}" "${ZONE:?zone, such as us-west4-a}"
python=${PYTHON_VERSION:-3.12}

cd "$(dirname "$0")/.."
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz --output="$archive" HEAD

gcloud compute tpus tpu-vm scp "$archive" "$NAME:flaxlm.tar.gz" --zone="$ZONE" --worker=all
gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="
  set -e
  rm -rf flaxlm && mkdir flaxlm && tar -xzf flaxlm.tar.gz -C flaxlm && cd flaxlm
  python3 -m pip install --quiet --user uv
  ~/.local/bin/uv venv --quiet --python $python .venv
  ~/.local/bin/uv pip install --quiet --python .venv/bin/python \
    --constraint requirements-lock-$python.txt -r requirements.txt 'jax[tpu]' gcsfs"
