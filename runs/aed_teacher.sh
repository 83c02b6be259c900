#!/usr/bin/env bash
# The larger teacher that ships, from nothing: two towers on tabletop, two hours on one core. Its weights are kept in half precision.
# `teach` overwrites no policy that it did not make, so this one is made beside the shipped one (checkpoints/).
set -euo pipefail
cd "$(dirname "$0")/.."
armlet=${ARMLET:-.venv/bin/armlet}
teacher=(--teacher out/aed_teacher/teacher --out out/aed_teacher)

$armlet collect tabletop
$armlet teach aed_tabletop "${teacher[@]}" --weights fp16
$armlet evaluate aed_tabletop "${teacher[@]}" --evaluation.episodes 1000
$armlet report out/aed_teacher/evaluation
