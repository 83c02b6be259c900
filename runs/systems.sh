#!/usr/bin/env bash
# The other published systems on tabletop, each with its teacher, its baselines and its ablations. Most of a day on two cores: run it in the
# background, and again if it was stopped.   nohup bash runs/systems.sh > systems.log &      Or one of them: bash runs/systems.sh vla_ad
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash
systems=${*:-vla_ad vla_ad_tiny vita_vla aed aed_online aed_ablations}

prepare() { # verb, recipe …: on both cores
  OMP_NUM_THREADS=2 $armlet "$@"
}

compare() { # the recipe whose report it is, and in how many episodes; beside it all students made so far
  all_made
  $armlet evaluate "$1" --evaluation.episodes "${EPISODES:-$2}" --policies "${students[@]:1}"
}

$armlet collect tabletop
for system in $systems; do
  students=() # the first of each is the system itself
  case $system in
    vla_ad) # the shipped teacher; phases by rule
      prepare probe vla_ad_tabletop
      for recipe in vla_ad_tabletop vla_ad_action_kd vla_ad_bc vla_ad_aux vla_ad_both; do
        make_student "out/$recipe" "$recipe"
      done
      compare vla_ad_tabletop 1000
      ;;
    vita_vla)
      [[ -e out/vita_vla_tabletop/expert/config.json ]] || prepare teach vita_vla_tabletop
      prepare probe vita_vla_tabletop
      make_student out/vita_vla_tabletop vita_vla_tabletop
      make_student out/vita_vla_finetune vita_vla_finetune
      compare vita_vla_tabletop 1000
      ;;
    vla_ad_tiny) # a student 44 times smaller than its teacher, which is AED's
      prepare probe aed_tabletop
      prepare probe vla_ad_tiny
      for recipe in vla_ad_tiny vla_ad_tiny_action_kd; do
        make_student "out/$recipe" "$recipe"
      done
      compare vla_ad_tiny 2000
      ;;
    aed) # its teacher ships as well (runs/aed_teacher.sh)
      prepare probe aed_tabletop
      for recipe in aed_tabletop aed_bc aed_action_only; do
        make_student "out/$recipe" "$recipe"
      done
      compare aed_tabletop 1000
      $armlet evaluate aed_tabletop --out out/aed_generalisation --policies "${students[@]}" \
        --evaluation.splits seen unseen_objects unseen_scenes unseen_wordings
      ;;
    aed_online) # its first two stages are those of `aed`: not trained twice where they are there
      for stage in distil-0 distil-1; do
        if [[ -e out/aed_tabletop/student && ! -e out/aed_online/$stage ]]; then
          mkdir -p out/aed_online && ln -s "../aed_tabletop/$stage" out/aed_online/
        fi
      done
      prepare distil aed_online
      $armlet evaluate aed_online --policies out/aed_tabletop/student --evaluation.splits unseen_wordings seen
      ;;
    aed_ablations) # what each term is worth after fewer steps, where the rows lie further apart
      prepare probe aed_tabletop
      steps=${ABLATION_STEPS:-2000}
      shorter="--stages.0.steps $((steps * 2 / 3)) --stages.1.steps $((steps / 3))"
      for recipe in aed_tabletop aed_minus_attention aed_minus_contrastive aed_contrastive_only aed_action_only aed_bc; do
        make_student "out/aed_ablations/$recipe" "$recipe" $shorter
      done
      sweep() { # a term of the loss, and weights that it has in the place of its own
        for weight in "${@:2}"; do
          make_student "out/aed_ablations/$1-$weight" aed_tabletop $shorter \
            "--stages.0.objective.$1" "$weight" "--stages.1.objective.$1" "$weight"
        done
      }
      sweep attention 0.25 1 # half and twice the account's weights
      sweep representation 0.25 1
      sweep action 0.5 2
      sweep contrastive 0.1 0.4
      all_made
      $armlet evaluate aed_tabletop --name aed_ablations --out out/aed_ablations --policies "${students[@]}" \
        --evaluation.splits seen unseen_scenes # where the terms were worth something after all steps
      ;;
    *) echo "no system $system; there are vla_ad, vla_ad_tiny, vita_vla, aed, aed_online and aed_ablations" && exit 1 ;;
  esac
done
