#!/usr/bin/env bash
# Compiles and installs the operator for the Python that is active.
#   OPS_DCNV3_CUDA=1 bash make.sh   also builds the CUDA kernels where no GPU is visible
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
python -m pip install --no-deps --force-reinstall .
cd / && python -m ops_dcnv3
