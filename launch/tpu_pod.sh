#!/usr/bin/env bash
# Trains on a TPU pod: starts the same command on every host of the slice. Run it on your own machine.
#
# Fill in: TPU, ZONE, PROJECT  of the slice (gcloud compute tpus tpu-vm list)
#          CONFIG              a file of configs/
#          WORKDIR             gs://BUCKET/RUN: all hosts write there; the same command continues the run
#          CHECKOUT            where this repository lies on every host, with its .venv
# Once before, on every host (--worker=all):
#   git clone REPOSITORY jaxlm && cd jaxlm && python3 -m venv .venv && .venv/bin/pip install -e '.[tpu]' gcsfs
# No addresses: the hosts of a slice find each other. JAX_COORDINATOR_PORT changes the port, 8482.
set -euo pipefail

TPU=${TPU:-NAME}
ZONE=${ZONE:-us-west4-a}
PROJECT=${PROJECT:-PROJECT}
CONFIG=${CONFIG:-pretrain_llama2_7b_v5e256}
WORKDIR=${WORKDIR:-gs://BUCKET/RUN}
CHECKOUT=${CHECKOUT:-jaxlm}

exec gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --project="$PROJECT" --worker=all \
  --command="cd '$CHECKOUT' && .venv/bin/jaxlm train --config='$CONFIG' --workdir='$WORKDIR' $*"
