#!/usr/bin/env bash
# Shared part of train_in1k.sh, train_in1k_deepspeed.sh and train_inat18.sh: start main.py, or the
# program named in PROGRAM, with srun, from any folder.
set -euo pipefail

self=$(basename "${SELF:-$0}")
program=${PROGRAM:-main.py}
output=${DEFAULT_OUTPUT:-work_dirs}
if [ $# -lt 3 ] || [ "$1" = -h ] || [ "$1" = --help ]; then
  cat >&2 <<USAGE
usage: [GPUS=8] [GPUS_PER_NODE=8] [CPUS_PER_TASK=12] [SRUN_ARGS=...] [PYTHON=python] $self PARTITION JOB_NAME CONFIG [$program options]
  CONFIG    a YAML, relative to the working directory or to $(dirname "$(readlink -f "$0")")
  Data are read from ${DEFAULT_DATA:-data/imagenet} (--data-path DIR changes it), results go to $output/ (--output DIR).
USAGE
  exit 2
fi

here=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
partition=$1
job=$2
config=$3
shift 3

if [ ! -f "$config" ]; then
  if [ ! -f "$here/$config" ]; then
    echo "$self: configuration $config is neither in $PWD nor in $here" >&2
    exit 1
  fi
  config=$here/$config
fi
data=${DEFAULT_DATA:-data/imagenet}
if [ ! -e "$data" ] && [ -e "$here/$data" ]; then
  data=$here/$data
fi

gpus=${GPUS:-8}
per_node=${GPUS_PER_NODE:-8}
if [ "$per_node" -gt "$gpus" ]; then
  per_node=$gpus
fi
read -r -a srun_args <<<"${SRUN_ARGS:-}"

command=(
  srun -p "$partition" --job-name="$job" --gres=gpu:"$per_node" --ntasks="$gpus"
  --ntasks-per-node="$per_node" --cpus-per-task="${CPUS_PER_TASK:-12}" --kill-on-bad-exit=1
  ${srun_args[@]+"${srun_args[@]}"}
  "${PYTHON:-python}" -u "$here/$program" --cfg "$config" --data-path "$data" --output "$output" "$@"
)
printf '%q ' "${command[@]}"
printf '\n'
exec "${command[@]}"
