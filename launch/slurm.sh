#!/usr/bin/env bash
# A run on GPU nodes of a SLURM cluster, a process for each GPU.
#
#   sbatch --nodes=4 launch/slurm.sh train.py --config=configs/gpt2.py:124m --workdir=/shared/gpt2
#
# Change what differs on your cluster here, or by flags of sbatch, which come first.
#SBATCH --job-name=flaxlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%x-%j.log
set -uo pipefail

if [[ $# -eq 0 ]]; then
  echo "usage: sbatch launch/slurm.sh train.py --config=... --workdir=..." >&2
  exit 2
fi

# Three minutes before its time is up, every process gets SIGTERM: the run saves and ends with 143.
srun --kill-on-bad-exit=1 "${PYTHON:-.venv/bin/python}" "$@"
status=$?
# 134: a process was lost; 137: killed, often for memory; 139: a crash in native code. They may come
# again: RESTARTS times at most (default 20). After these, and after 143, the same command goes on,
# unless the job is ending because scancel said so.
again=
case $status in
  134 | 137 | 139) ((${SLURM_RESTART_COUNT:-0} >= ${RESTARTS:-20})) || again=yes ;;
  143) [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) != RUNNING ]] || again=yes ;;
esac
[[ -z $again ]] || scontrol requeue "$SLURM_JOB_ID"
exit "$status"
