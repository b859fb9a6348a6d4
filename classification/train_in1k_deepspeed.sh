#!/usr/bin/env bash
# Train on ImageNet-1K with DeepSpeed under Slurm; --zero-stage, --offload-optimizer... at the end.
exec env DEFAULT_DATA=data/imagenet DEFAULT_OUTPUT=work_dirs_deepspeed PROGRAM=main_deepspeed.py \
  SELF="$0" bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/slurm_train.sh" "$@"
