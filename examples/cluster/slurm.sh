#!/bin/bash
# A run on SLURM: sbatch examples/cluster/slurm.sh examples/distributed.py --out /shared/digits
#
# srun starts one process for each GPU and sets, in each, what JAX reads by itself:
#   SLURM_JOB_ID, SLURM_STEP_NODELIST   of which come the first process's port and host
#   SLURM_NTASKS                        how many processes there are
#   SLURM_PROCID                        which one this is
#   SLURM_LOCALID                       which GPU of its machine it takes
#
# On machines without GPUs: one task a machine, and no --gpus-per-node.

#SBATCH --job-name=fnn
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
# Each task must see all GPUs of its machine, of which it takes the one of its local number; so
# neither --gpus-per-task nor --gpu-bind.

# SIGTERM two minutes before the end, and when the job is preempted: fnn.train.stop_on_signal()
# among the callbacks then saves. The job goes back into the queue and resumes.
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY   # the processes talk to each other directly

# A failed process ends all by itself; --kill-on-bad-exit ends what hangs outside of Python too.
srun --kill-on-bad-exit=1 --label python -u "$@"
