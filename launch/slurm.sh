#!/usr/bin/env bash
# Trains on a Slurm cluster, one process per node with all its GPUs: sbatch launch/slurm.sh --config.seed=1
#
# Fill in: nodes and GPUs below, and the partition of your cluster
#          CONFIG   a file of configs/
#          WORKDIR  a folder on a disk that all nodes share; the same command continues the run
# Once before: python3 -m venv .venv && .venv/bin/pip install -e '.[cuda]', on a shared disk.
#
#SBATCH --job-name=jaxlm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
set -euo pipefail

CONFIG=${CONFIG:-quickstart}
WORKDIR=${WORKDIR:-runs/slurm}

# JAX would give each task one GPU; here a task has all of its node.
export JAX_LOCAL_DEVICE_IDS=${JAX_LOCAL_DEVICE_IDS:-0,1,2,3,4,5,6,7}

exec srun --kill-on-bad-exit=1 .venv/bin/jaxlm train --config="$CONFIG" --workdir="$WORKDIR" "$@"
