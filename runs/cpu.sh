#!/usr/bin/env bash
# The comparison behind the claims, on two cores: ActDistill, its ablations and the baselines, same data, same
# number of steps; three seeds for the rows that carry the claim; then one report with all of them on the same episodes. Hours, so run it
# in the background:   nohup bash runs/cpu.sh > cpu.log &     Killed, it goes on where it stopped when it is run again.
#   SEEDS="0 1 2" EPISODES=1000 bash runs/cpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
armlet=${ARMLET:-.venv/bin/armlet}
seeds=${SEEDS:-0 1 2}
students=()

make_student() { # name, recipe, options …
  local name=$1 recipe=$2
  shift 2
  if [[ ! -e out/cpu/$name/student/config.json ]]; then
    $armlet distil "$recipe" --name "$name" --out "out/cpu/$name" "$@"
  fi
  students+=("out/cpu/$name/student")
}

$armlet collect tabletop
$armlet probe tabletop
for seed in $seeds; do
  for recipe in actdistill first_k layer_drop random_skip; do
    make_student "$recipe-$seed" "${recipe}_tabletop" --seed "$seed"
  done
done
for recipe in bc action_kd blind published; do
  make_student "$recipe" "${recipe}_tabletop"
done
make_student minus-semantic actdistill_tabletop --stages.0.objective.semantic 0
make_student minus-layer-action actdistill_tabletop --stages.0.objective.layer-action 0
make_student minus-condition actdistill_tabletop --stages.0.objective.output.condition 0 --stages.1.objective.condition 0
make_student minus-action actdistill_tabletop --stages.0.objective.output.action 0 --stages.1.objective.action 0
make_student minus-imitation actdistill_tabletop --stages.0.objective.output.imitation 0 --stages.1.objective.imitation 0
make_student dial dial_tabletop
$armlet evaluate tabletop --out out/cpu --evaluation.episodes "${EPISODES:-1000}" --policies "${students[@]}" \
  --evaluation.splits seen unseen_objects unseen_scenes unseen_wordings
$armlet evaluate dial_tabletop --name dial --out out/cpu/dial --evaluation.budgets 0.2 0.25 0.375 0.5 0.75 1 \
  --policies out/cpu/first_k-0/student
$armlet report out/cpu/evaluation out/cpu/dial/evaluation --out out/cpu/report.html
