#!/usr/bin/env bash
# What VITA-VLA's alignment saves: success against steps and against demonstrations, of a student eight times as large as its expert, beside
# the same model without alignment and one that was aligned with the expert's answers to other frames. A day and more on two cores; run it
# again if it was stopped.   nohup bash runs/vita_vla.sh > vita_vla.log &      STEPS="300 1000" DEMONSTRATIONS=200 SIZE=vita_vla: a part of it
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash
size=${SIZE:-vita_vla_large} # vita_vla: a student as large as its expert
aligned=$size
[[ $size == vita_vla ]] && aligned=vita_vla_tabletop

$armlet collect tabletop
[[ -e out/vita_vla_tabletop/expert/config.json ]] || OMP_NUM_THREADS=2 $armlet teach "$aligned"
OMP_NUM_THREADS=2 $armlet probe "$aligned"

three() { # folder, steps in all, options: aligned, not aligned, wrongly aligned
  local folder=$1 half=$(($2 / 2)) all=$2
  shift 2
  make_student "$folder-aligned" "$aligned" --stages.0.steps $half --stages.1.steps $half "$@"
  make_student "$folder-finetune" "${size}_finetune" --stages.0.steps "$all" "$@"
  make_student "$folder-shuffled" "${size}_shuffled" --stages.0.steps $half --stages.1.steps $half "$@"
}

for steps in ${STEPS:-300 1000 3000}; do # of all 8,000 episodes
  three "out/vita_vla_sweep/$size-$steps-steps" "$steps"
done
for demonstrations in ${DEMONSTRATIONS:-50 200 1000}; do # the first of 8,000; the expert was taught on all
  held_out=$(awk "BEGIN { print 1 - $demonstrations / 8000 }")
  three "out/vita_vla_sweep/$size-$demonstrations-demonstrations" 3000 --held-out "$held_out"
done
all_made
$armlet evaluate "$aligned" --name vita_vla_sweep --out out/vita_vla_sweep \
  --evaluation.episodes "${EPISODES:-1000}" --policies "${students[@]}"
