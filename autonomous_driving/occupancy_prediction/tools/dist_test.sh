#!/usr/bin/env bash
# Tests with several processes on this machine, or on several machines (start it on each of them).
# GPUs are used if there are any; else the processes share the CPU.
#
#   bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py; without any: --eval]
#
#   PORT         port of the first machine                 (29511)
#   NNODES       number of machines                        (1)
#   NODE_RANK    number of this machine, from 0            (0)
#   MASTER_ADDR  name or address of the first machine      (127.0.0.1)
#   PYTHON       interpreter                               (python)
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: bash tools/dist_test.sh CONFIG CHECKPOINT GPUS [arguments of test.py]" >&2
    exit 2
fi
config=$1
checkpoint=$2
gpus=$3
shift 3
if [ $# -eq 0 ]; then set -- --eval; fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29511}" \
    --nproc_per_node="$gpus" \
    "$here/test.py" "$config" "$checkpoint" --launcher pytorch "${@}"
