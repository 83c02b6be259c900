#!/usr/bin/env bash
# The larger teacher that ships, from nothing: two towers on tabletop, two hours on one core. Its weights are kept in half precision.
set -euo pipefail
cd "$(dirname "$0")/.."
armlet=${ARMLET:-.venv/bin/armlet}

$armlet collect tabletop
$armlet teach aed_tabletop --weights fp16
$armlet evaluate aed_tabletop --evaluation.episodes 1000
$armlet report out/aed_tabletop/evaluation
