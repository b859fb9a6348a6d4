#!/usr/bin/env bash
# Tests on a Slurm cluster.
#
#   GPUS=8 bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py; else --eval]
#
#   GPUS           processes, one per GPU                  (8)
#   GPUS_PER_NODE  at most so many on one machine          (8)
#   CPUS_PER_TASK  per process                             (5)
#   SRUN_ARGS      more arguments of srun, for example "--quotatype=spot --time=24:00:00"
#   PYTHON         interpreter                             (python)
set -euo pipefail

if [ $# -lt 4 ]; then
    echo "usage: bash tools/slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [arguments of test.py]" >&2
    exit 2
fi
partition=$1
job=$2
config=$3
checkpoint=$4
gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
if [ "$gpus" -lt "$per_node" ]; then per_node=$gpus; fi
shift 4
if [ $# -eq 0 ]; then set -- --eval; fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# SRUN_ARGS is split at spaces on purpose
exec srun \
    --partition="$partition" \
    --job-name="$job" \
    --gres="gpu:$per_node" \
    --ntasks="$gpus" \
    --ntasks-per-node="$per_node" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" \
    --kill-on-bad-exit=1 \
    ${SRUN_ARGS:-} \
    "${PYTHON:-python}" -u "$here/test.py" "$config" "$checkpoint" --launcher=slurm "${@}"
