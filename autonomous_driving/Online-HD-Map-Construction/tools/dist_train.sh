#!/usr/bin/env bash
# Trains with several processes on this machine, or on several machines (start it on each of them).
# GPUs are used if there are any; else the processes share the CPU.
#
#   bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]
#
#   PORT         port of the first machine                 (29500)
#   NNODES       number of machines                        (1)
#   NODE_RANK    number of this machine, from 0            (0)
#   MASTER_ADDR  name or address of the first machine      (127.0.0.1)
#   PYTHON       interpreter                               (python)
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: bash tools/dist_train.sh CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
config=$1
gpus=$2
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$here/train.py" "$config" --launcher pytorch "${@:3}"
