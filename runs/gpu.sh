#!/usr/bin/env bash
# On a machine with one CUDA GPU of 24 GB or more: the real-size table there, and the limit that the
# GPU's memory sets: the same decisions as CUDA graphs beside the milliseconds in which their weights can
# be read at the bandwidth that was measured (bench/captured.py).
#
#   runs/gpu.sh [OUT]
#
# Checkpoints of random numbers are made on the spot; nothing is downloaded.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-out/gpu}
mkdir -p "$out"
python bench/real_size.py --device cuda --rounds 20 --folder "$out/checkpoints" \
    --out "$out/real_size.json" 2> >(tee "$out/real_size.log" >&2)
