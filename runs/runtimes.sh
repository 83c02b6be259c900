#!/usr/bin/env bash
# What speed is, and whose: the shipped teacher, an ActDistill student and two students of the simple ways, each in eager, ONNX
# Runtime, OpenVINO and int8 of both, in the same episodes, timed in one run; every policy once more with its longest `execute`
# that is no worse, found beforehand on episodes of its own. Then teacher and student alone in int8, in more episodes.
# On a quiet machine: what else runs is in the milliseconds. Killed, it goes on where it stopped.
#   bash runs/runtimes.sh            STUDENTS=DIR: where students lie or are made (out/runtimes/students)
#   EPISODES=1000 INT8=2000 CALIBRATE=1000
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash
folder=${STUDENTS:-out/runtimes/students}
teacher=(--teacher checkpoints/tabletop-teacher)

if [[ ! -e $folder/actdistill/student/config.json || ! -e $folder/first_k/student/config.json ||
  ! -e $folder/layer_drop/student/config.json ]]; then
  $armlet collect tabletop
  OMP_NUM_THREADS=2 $armlet probe tabletop "${teacher[@]}"
fi
for recipe in actdistill first_k layer_drop; do
  make_student "$folder/$recipe" "${recipe}_tabletop" "${teacher[@]}"
done
all_made

# The longest `execute`, for teacher and students alike.
$armlet calibrate tabletop "${teacher[@]}" --out out/runtimes --policies "${students[@]}" \
  --calibration.episodes "${CALIBRATE:-1000}"
# A list of episodes that nothing was chosen on: neither recipes (500,000,000) nor `execute` (300,000,000).
$armlet evaluate tabletop --name runtimes "${teacher[@]}" --out out/runtimes --policies "${students[@]}" \
  --evaluation.runtimes eager onnx openvino onnx_int8 openvino_int8_static \
  --evaluation.episodes "${EPISODES:-1000}" --evaluation.purpose report --evaluation.seed 740000000 --evaluation.latency-calls 1000
$armlet evaluate tabletop --name int8 "${teacher[@]}" --out out/runtimes/int8 --policies "$folder/actdistill/student" \
  --evaluation.runtimes eager onnx_int8 openvino_int8_static \
  --evaluation.episodes "${INT8:-2000}" --evaluation.purpose report --evaluation.seed 750000000 --evaluation.latency-calls 1000 --evaluation.videos 0
$armlet report out/runtimes/evaluation out/runtimes/int8/evaluation --out out/runtimes/report.html
