#!/usr/bin/env bash
# ActDistill, its ablations and the baselines on two cores, same data, same number of steps; three seeds for the rows that are
# compared over seeds; then one report with all of them on the same episodes. Hours, so run it
# in the background:   nohup bash runs/cpu.sh > cpu.log &     Killed, it goes on where it stopped when it is run again.
#   SEEDS="0 1 2" EPISODES=1000 bash runs/cpu.sh
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash
seeds=${SEEDS:-0 1 2}

$armlet collect tabletop
OMP_NUM_THREADS=2 $armlet probe tabletop
for seed in $seeds; do
  for recipe in actdistill first_k layer_drop layer_search random_skip; do
    make_student "out/cpu/$recipe-$seed" "${recipe}_tabletop" --seed "$seed"
  done
done
all_made
# Teacher, student and the simple ways, over seeds, on the list of episodes that recipes are chosen on (docs/reproductions/actdistill.md has another).
$armlet evaluate tabletop --out out/cpu --evaluation.episodes "${EPISODES:-1000}" --policies "${students[@]}"

# What each part is worth, one seed each.
students=(out/cpu/actdistill-0/student)
for recipe in bc bc_warm bc_whole bc_long action_kd blind published onpolicy; do
  make_student "out/cpu/$recipe" "${recipe}_tabletop"
done
make_student out/cpu/minus-semantic actdistill_tabletop --stages.0.objective.semantic 0
make_student out/cpu/minus-layer-action actdistill_tabletop --stages.0.objective.layer-action 0
make_student out/cpu/minus-condition actdistill_tabletop --stages.0.objective.output.condition 0 --stages.1.objective.condition 0
make_student out/cpu/minus-action actdistill_tabletop --stages.0.objective.output.action 0 --stages.1.objective.action 0
make_student out/cpu/minus-imitation actdistill_tabletop --stages.0.objective.output.imitation 0 --stages.1.objective.imitation 0
$armlet probe tabletop --shared out/nograph --probe.graph-layers 0
make_student out/cpu/minus-graph actdistill_tabletop --shared out/nograph --probe.graph-layers 0
make_student out/cpu/all-supervised actdistill_tabletop --stages.0.objective.every 1
all_made
$armlet evaluate tabletop --name ablations --out out/cpu/ablations --evaluation.episodes "${EPISODES:-1000}" --policies "${students[@]}"

# One student for every budget, beside a first-k student trained for each point.
students=()
make_student out/cpu/dial dial_tabletop
for layers in 1 3 4 6; do
  make_student "out/cpu/first_$layers" first_k_tabletop --student.layers "$layers"
done
all_made
$armlet evaluate dial_tabletop --name dial --out out/cpu/dial --evaluation.budgets 0.125 0.25 0.375 0.5 0.75 1 \
  --policies out/cpu/first_k-0/student "${students[@]:1}"
$armlet report out/cpu/evaluation out/cpu/ablations/evaluation out/cpu/dial/evaluation --out out/cpu/report.html
