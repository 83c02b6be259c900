#!/usr/bin/env bash
# VLA-AD's noisy-gripper study on tabletop: a share of the gripper labels is flipped, the same ones for every student; what do success and
# toggles of the gripper come to, without a word and with each of three ways to use the annotator's? Twelve trainings of 12 minutes, two at a
# time; resumable.                                  RATES="0 0.2 0.4" STEPS=5000 bash runs/noisy_gripper.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash

$armlet collect tabletop
OMP_NUM_THREADS=2 $armlet probe aed_tabletop
OMP_NUM_THREADS=2 $armlet probe vla_ad_tiny_offline
for rate in ${RATES:-0 0.2 0.4}; do
  for recipe in vla_ad_tiny_offline vla_ad_tiny_offline_{action_kd,aux,both}; do
    make_student "out/noisy_gripper/$recipe@$rate" "$recipe" --stages.0.steps "${STEPS:-5000}" --stages.0.transforms.1.share "$rate"
  done
done
all_made
$armlet evaluate aed_tabletop --name noisy_gripper --out out/noisy_gripper --evaluation.episodes "${EPISODES:-400}" --policies "${students[@]}"
