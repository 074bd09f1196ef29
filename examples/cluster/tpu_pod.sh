#!/bin/bash
# A run on all machines of a TPU pod:
#
#   TPU=my-pod ZONE=us-central2-b examples/cluster/tpu_pod.sh examples/distributed.py --out /shared/digits
#
# The same command runs on every machine, one process with all of its chips. JAX asks the machine's
# metadata for the rest, so no variable is to be set:
#   worker-network-endpoints   the machines: how many there are, and where the first is
#   agent-worker-number        which one this is
# On GKE these are the variables TPU_WORKER_HOSTNAMES and TPU_WORKER_ID, which GKE sets in pods that
# ask for google.com/tpu; JAX reads them too.
#
# /shared is a disk that all machines have mounted, such as Filestore; a Keeper cannot keep in a
# bucket.

set -euo pipefail
: "${TPU:?the name of the pod}" "${ZONE:?its zone}"

here() { gcloud compute tpus tpu-vm "$@" --zone "$ZONE" --worker=all; }

here scp --recurse . "$TPU:fnn"
here ssh "$TPU" --command "pip install --quiet 'jax[tpu]' ./fnn && cd fnn && python -u $*"
