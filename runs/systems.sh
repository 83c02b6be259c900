#!/usr/bin/env bash
# The other published systems on tabletop, each with its teacher, its baselines and its ablations. Most of a day on two cores: run it in the
# background, and again if it was stopped.   nohup bash runs/systems.sh > systems.log &      Or one of them: bash runs/systems.sh vla_ad
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash
systems=${*:-vla_ad vita_vla aed}

prepare() { # verb, recipe …: on both cores
  OMP_NUM_THREADS=2 $armlet "$@"
}

compare() { # the recipe whose report it is, and options; beside it all students made so far
  local main=$1
  shift
  all_made
  $armlet evaluate "$main" --policies "${students[@]:1}" "$@"
}

$armlet collect tabletop
for system in $systems; do
  students=() # the first of each is the system itself
  case $system in
    vla_ad) # the shipped teacher; phases by rule
      prepare probe tabletop
      prepare probe vla_ad_tabletop
      for recipe in vla_ad_tabletop vla_ad_action_kd vla_ad_bc vla_ad_aux vla_ad_both; do
        make_student "out/$recipe" "$recipe"
      done
      compare vla_ad_tabletop
      ;;
    vita_vla)
      [[ -e out/vita_vla_tabletop/expert/config.json ]] || prepare teach vita_vla_tabletop
      prepare probe vita_vla_tabletop
      make_student out/vita_vla_tabletop vita_vla_tabletop
      make_student out/vita_vla_finetune vita_vla_finetune
      compare vita_vla_tabletop
      ;;
    aed) # its teacher ships as well (runs/aed_teacher.sh)
      prepare probe aed_tabletop
      for recipe in aed_tabletop aed_bc aed_action_only aed_minus_attention aed_minus_contrastive aed_contrastive_only; do
        make_student "out/$recipe" "$recipe"
      done
      for weight in 0.25 1; do # sweeps of the weights of attention and representation
        for term in attention representation; do
          make_student "out/aed_$term-$weight" aed_tabletop "--stages.0.objective.$term" "$weight" "--stages.1.objective.$term" "$weight"
        done
      done
      compare aed_tabletop --evaluation.splits seen unseen_objects unseen_scenes unseen_wordings
      make_student out/aed_online aed_online
      all_made
      $armlet evaluate aed_online --policies out/aed_tabletop/student --evaluation.splits seen unseen_objects
      ;;
    *) echo "no system $system; there are vla_ad, vita_vla and aed" && exit 1 ;;
  esac
done
