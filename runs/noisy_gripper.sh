#!/usr/bin/env bash
# VLA-AD's noisy-gripper study on tabletop: a share of the gripper labels is flipped, the same ones for every student; what do success and
# toggles of the gripper come to, with the annotator's words and without? Eight trainings; resumable, in the background.
#   RATES="0 0.1 0.2 0.4" STEPS=9000 bash runs/noisy_gripper.sh
set -euo pipefail
cd "$(dirname "$0")/.."
armlet=${ARMLET:-.venv/bin/armlet}
steps=${STEPS:-9000}
students=()
export OMP_NUM_THREADS=1

$armlet collect tabletop
OMP_NUM_THREADS=2 $armlet probe tabletop
OMP_NUM_THREADS=2 $armlet probe vla_ad_tabletop
for rate in ${RATES:-0 0.1 0.2 0.4}; do
  for recipe in vla_ad_tabletop vla_ad_action_kd; do
    name=$recipe@$rate
    students+=("out/noisy_gripper/$name/student")
    [[ -e out/noisy_gripper/$name/student/config.json ]] && continue
    while (($(jobs -rp | wc -l) >= 2)); do wait -n; done
    $armlet distil "$recipe" --name "$name" --out "out/noisy_gripper/$name" --stages.0.steps "$steps" --stages.0.gripper-noise "$rate" &
  done
done
while (($(jobs -rp | wc -l) > 0)); do wait -n; done
$armlet evaluate tabletop --name noisy_gripper --out out/noisy_gripper --evaluation.episodes "${EPISODES:-400}" --policies "${students[@]}"
