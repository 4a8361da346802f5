#!/usr/bin/env bash
# jaxlm launch --on=slurm --target=launch/h100x16.yaml -- train --config=quickstart --workdir=/shared/runs/mine
# h100x16: 16 chips in 2 machines. The same script goes on with the run.
#SBATCH --job-name=mine
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=mine-%j.log
set -euo pipefail
cd /shared/jaxlm
# JAX would give each task one GPU; here a task has all of its node.
export JAX_LOCAL_DEVICE_IDS=0,1,2,3,4,5,6,7
code=0
srun --kill-on-bad-exit=1 .venv/bin/jaxlm launch --on=local --execute --max-restarts=10 -- train --config=quickstart --workdir=/shared/runs/mine || code=$?
# Told to stop, with the step saved: the job goes on when it has nodes again.
if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
