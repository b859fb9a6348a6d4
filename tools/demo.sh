#!/usr/bin/env bash
# The main job on real images, on the CPU: train, evaluate, predict.
#   bash tools/demo.sh [PYTHON]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$(command -v "${1:-python}")
case $python in /*) ;; *) python=$PWD/$python ;; esac

digits=$PWD/data/digits
output=$PWD/output/demo
config=configs/toy/internimage_nano_digits.yaml
run=$output/internimage_nano_digits

if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; else bold='' plain=''; fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }

say "1. 1,797 handwritten digits as an ImageFolder: $digits"
"$python" tools/toy_digits.py "$digits"

cd classification
if [ -e "$run" ]; then
  say "(an earlier demo is in the way and is removed: $run)"
  rm -rf "$run"
fi
say "2. Train InternImage-nano (main.py)"
"$python" main.py --cfg "$config" --data-path "$digits" --output "$output"

checkpoint=$(find "$run" -name 'ckpt_epoch_[0-9]*.pth' | sort -V | tail -n 1)
say "3. Evaluate the last checkpoint (main.py --eval)"
"$python" main.py --cfg "$config" --data-path "$digits" --output "$output/eval" --eval \
  --resume "$checkpoint" 2>&1 | tee "$run/eval.txt"

say "4. Predict one validation image of each digit (predict.py)"
images=()
for digit in 0 1 2 3 4 5 6 7 8 9; do
  images+=("$(find "$digits/val/$digit" -type f | sort | head -n 1)")
done
"$python" predict.py --resume "$checkpoint" --out "$run/predictions.png" "${images[@]}"

say "Done"
echo "Run:      $run (checkpoints, log, TensorBoard files)"
echo "Picture:  $run/predictions.png"
grep -o "Accuracy of the network.*" "$run/eval.txt"
