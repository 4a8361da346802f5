#!/usr/bin/env bash
# Trains on one TPU VM (a single host, such as v5litepod-8). Run it there, in a checkout of this repository.
#
# Fill in: CONFIG   a file of configs/, with its flags below if you want any
#          WORKDIR  gs://BUCKET/RUN, or a folder; the same command continues the run
# Once before: python3 -m venv .venv && .venv/bin/pip install -e '.[tpu]' gcsfs
# `jaxlm launch --on=local` starts the run again when it crashes, or stands still.
set -euo pipefail

CONFIG=${CONFIG:-pretrain_gpt2_124m_v5e8}
WORKDIR=${WORKDIR:-gs://BUCKET/RUN}

exec .venv/bin/jaxlm launch --on=local --execute -- train --config="$CONFIG" --workdir="$WORKDIR" "$@"
