#!/usr/bin/env bash
# The demo: the shipped teacher is probed and distilled into a routed student and a first-k student, and all three
# meet the same 100 episodes, in PyTorch and exported: a teacher that is exported unchanged is faster, too.
# `--teach` makes the teacher from nothing first (an hour on two cores).
set -euo pipefail
cd "$(dirname "$0")/.."
armlet=${ARMLET:-.venv/bin/armlet}
if [[ "${1:-}" == --teach ]]; then
  $armlet collect tabletop
  $armlet teach tabletop --teacher out/demo/teacher
  teacher=(--teacher out/demo/teacher)
else
  teacher=(--teacher checkpoints/tabletop-teacher)
fi
$armlet collect demo
$armlet probe demo "${teacher[@]}"
$armlet distil actdistill_demo "${teacher[@]}"
$armlet distil first_k_demo "${teacher[@]}"
$armlet evaluate actdistill_demo "${teacher[@]}" --policies out/demo/first_k/student \
  --evaluation.runtimes eager onnx onnx_int8
$armlet report out/demo/actdistill/evaluation
echo "The page: out/demo/actdistill/evaluation/report.html; the table, the picture and the videos lie beside it."
