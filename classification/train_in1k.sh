#!/usr/bin/env bash
# Train on ImageNet-1K under Slurm.
exec env -u PROGRAM -u DEFAULT_OUTPUT DEFAULT_DATA=data/imagenet SELF="$0" \
  bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/slurm_train.sh" "$@"
