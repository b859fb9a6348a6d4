#!/usr/bin/env bash
# Train on iNaturalist 2018 under Slurm.
exec env -u PROGRAM -u DEFAULT_OUTPUT DEFAULT_DATA=data/inat2018 SELF="$0" \
  bash "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/slurm_train.sh" "$@"
