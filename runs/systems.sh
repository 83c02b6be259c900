#!/usr/bin/env bash
# The other published systems on tabletop, each with its teacher, its baselines and its ablations. A day on two cores: run it in the
# background, and again if it was stopped.   nohup bash runs/systems.sh > systems.log &      Or one of them: bash runs/systems.sh vla_ad
set -euo pipefail
cd "$(dirname "$0")/.."
armlet=${ARMLET:-.venv/bin/armlet}
systems=${*:-vla_ad vita_vla aed}

distil_all() { # recipes …
  for recipe in "$@"; do
    [[ -e out/$recipe/student/config.json ]] || $armlet distil "$recipe"
  done
}

compare() { # the recipe whose report it is, and those beside it
  local main=$1
  shift
  $armlet evaluate "$main" --policies "${@/#/out/}"
}

$armlet collect tabletop
for system in $systems; do
  case $system in
    vla_ad) # the shipped teacher; phases by rule
      $armlet probe tabletop
      $armlet probe vla_ad_tabletop
      distil_all vla_ad_tabletop vla_ad_action_kd vla_ad_bc vla_ad_aux vla_ad_both
      compare vla_ad_tabletop vla_ad_{action_kd,bc,aux,both}/student
      ;;
    vita_vla)
      [[ -e out/vita_vla_tabletop/expert/config.json ]] || $armlet teach vita_vla_tabletop
      $armlet probe vita_vla_tabletop
      distil_all vita_vla_tabletop vita_vla_finetune
      compare vita_vla_tabletop vita_vla_finetune/student
      ;;
    aed)
      [[ -e out/aed_tabletop/teacher/config.json ]] || $armlet teach aed_tabletop
      $armlet probe aed_tabletop
      distil_all aed_tabletop aed_bc aed_action_only aed_minus_attention aed_minus_contrastive aed_contrastive_only
      for weight in 0.25 1; do # sweeps of the weights of attention and representation
        for term in attention representation; do
          name=aed_$term-$weight
          [[ -e out/$name/student/config.json ]] ||
            $armlet distil aed_tabletop --name "$name" --out "out/$name" "--stages.0.objective.$term" "$weight" "--stages.1.objective.$term" "$weight"
        done
      done
      compare aed_tabletop aed_{bc,action_only,minus_attention,minus_contrastive,contrastive_only}/student \
        aed_{attention,representation}-{0.25,1}/student \
        --evaluation.splits seen unseen_objects unseen_scenes unseen_wordings
      distil_all aed_online
      compare aed_online aed_tabletop/student --evaluation.splits seen unseen_objects
      ;;
    *) echo "no system $system; there are vla_ad, vita_vla and aed" && exit 1 ;;
  esac
done
