#!/usr/bin/env bash
# jaxlm launch --on=tpu --target=launch/v5e-16.yaml --package=jaxlm==0.1.0 -- train --config=pretrain_gpt2_124m_v5e8
# v5e-16 (4x4): 16 chips in 4 machines
# Printed, not run: --execute runs it.
set -euo pipefail

# ask for the TPUs
gcloud compute tpus queued-resources create gpt2 \
  --zone=us-west4-a \
  --project=my-project \
  --accelerator-type=v5litepod-16 \
  --runtime-version=v2-alpha-tpuv5-lite \
  --node-id=gpt2 \
  --spot \
  --async \
  --quiet

# wait until they are there
while true; do
  state=$(gcloud compute tpus queued-resources describe gpt2 --zone=us-west4-a --project=my-project '--format=value(state.state)')
  echo "$state"
  case "$state" in
    ACTIVE) break ;;
    FAILED|SUSPENDING|SUSPENDED|DELETING) exit 1 ;;
  esac
  sleep 30
done

# make a folder on every machine
gcloud compute tpus queued-resources ssh gpt2 \
  --zone=us-west4-a \
  --project=my-project \
  --node=all \
  --worker=all \
  --quiet \
  '--command=mkdir -p jaxlm-launch/gpt2'

# install jaxlm
gcloud compute tpus queued-resources ssh gpt2 \
  --zone=us-west4-a \
  --project=my-project \
  --node=all \
  --worker=all \
  --quiet \
  '--command=set -eu
cd jaxlm-launch/gpt2
export PATH="$HOME/.local/bin:$PATH"
command -v uv > /dev/null || python3 -m pip install --quiet --user uv
test -x venv/bin/python || uv venv --quiet --python '"'"'>=3.11'"'"' venv
uv pip install --quiet --python venv/bin/python '"'"'jaxlm[tpu]==0.1.0'"'"' gcsfs'

# start the run on every machine
gcloud compute tpus queued-resources ssh gpt2 \
  --zone=us-west4-a \
  --project=my-project \
  --node=all \
  --worker=all \
  --quiet \
  '--command=set -eu
cd jaxlm-launch/gpt2
if [ -f pid ] && kill -0 "$(cat pid)" 2> /dev/null; then echo "It is running already."; exit 0; fi
rm -f exit_code
cat > run.sh <<'"'"'JAXLM_END'"'"'
#!/usr/bin/env bash
trap : TERM
cd "$(dirname "$0")" || exit 1
venv/bin/jaxlm launch --on=local --execute --max-restarts=10 -- train --config=pretrain_gpt2_124m_v5e8 --workdir=gs://my-bucket/runs/gpt2
echo $? > exit_code
JAXLM_END
nohup setsid bash ./run.sh >> log 2>&1 < /dev/null &
echo $! > pid'

# show the log of the first machine, until the run ends
gcloud compute tpus queued-resources ssh gpt2 \
  --zone=us-west4-a \
  --project=my-project \
  --node=0 \
  --worker=0 \
  --quiet \
  '--command=cd jaxlm-launch/gpt2 && tail --bytes=+1 --follow --pid="$(cat pid)" log'
