#!/usr/bin/env bash
# Our own recipe on Meta-World's fifty tasks (docs/flagship.md), in three parts, each of which goes on where it was stopped:
#   bash runs/flagship.sh tuning   the recipe, each lever left out, and others beside, one training each, on the tuning seeds
#   bash runs/flagship.sh report   the chosen one, three trainings, once on the report's seeds, in ONNX Runtime
#   bash runs/flagship.sh late     the same students on slower computers, where time passes while a policy thinks
# Without a word, all three. What is chosen is chosen on the first part's table:   CHOSEN=flagship_mt50_outright bash runs/flagship.sh report late
#   RECIPES="flagship_mt50 flagship_mt50_minus_search": of the first part, these alone; it can be made larger later
#   TEACHER=checkpoints/mt50-teacher: one that is there, in the place of two hours of teaching
#   OUT=out/flagship   SEEDS="0 1 2"   EXECUTE=8   TUNING=500 EPISODES=2000 LATE=250   SLOWER="10 40"
# SMOKE=1: three tasks and a few steps, to see that it runs through; half an hour, and no number of it means anything.
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash
chosen=${CHOSEN:-flagship_mt50}
execute=${EXECUTE:-8}
levers="flagship_mt50 flagship_mt50_minus_condition flagship_mt50_minus_search flagship_mt50_minus_steps flagship_mt50_minus_layers"
others="flagship_mt50_four_layers flagship_mt50_outright flagship_mt50_ends flagship_mt50_narrow flagship_mt50_round flagship_mt50_shortcut
  flagship_mt50_router flagship_mt50_four_routed flagship_mt50_four_supervised"
world=() base=()               # of all verbs; of those that make what students start from
acting=(--evaluation.videos 1) # of evaluations
single=() learning=()          # of students with one stage; of one with a round as well
routing=()                     # of the router's two stages
if [[ -n ${SMOKE:-} ]]; then
  out=${OUT:-out/flagship_smoke}
  world=(--episodes "$out/episodes" --teacher "$out/teacher" --shared "$out/shared"
    --network.depth 10 --network.width 32 --network.heads 2 --network.vision-channels 8 --benchmark.task-names reach-v3 button-press-topdown-v3 push-v3 --benchmark.step-limit 60 --collection.episodes 9 --collection.workers 1 --held-out 0.3
    --teach.steps 8 --teach.batch-size 8 --teach.no-compile --probe.stage.steps 4 --probe.stage.batch-size 8
    --evaluation.workers 1 --evaluation.latency-calls 8)
  acting=(--evaluation.videos 0)
  single=(--stages.0.steps 6 --stages.0.batch-size 8 --stages.0.no-compile)
  learning=("${single[@]}" --rounds.0.episodes 2 --rounds.0.trial 3 --rounds.0.workers 1
    --rounds.0.stage.steps 2 --rounds.0.stage.batch-size 8 --rounds.0.stage.no-compile)
  routing=(--stages.0.steps 4 --stages.0.batch-size 8 --stages.0.no-compile --stages.1.steps 4 --stages.1.batch-size 8)
  levers="flagship_mt50 flagship_mt50_minus_condition" others="flagship_mt50_round flagship_mt50_shortcut flagship_mt50_four_supervised"
  : "${SEEDS:=0 1}" "${TUNING:=3}" "${EPISODES:=3}" "${LATE:=3}"
  base=(--out "$out/base")
fi
out=${out:-${OUT:-out/flagship}}

of() { # the options of a recipe's students
  case $1 in
    *_round) options=("${learning[@]}") ;;
    *_router | *_routed | *_supervised | *_dial) options=("${routing[@]}") ;;
    *) options=("${single[@]}") ;;
  esac
}

$armlet collect mt50 "${world[@]}" "${base[@]}"
if [[ -n ${TEACHER:-} ]]; then
  world+=(--teacher "$TEACHER")
else
  OMP_NUM_THREADS=2 $armlet teach mt50 "${world[@]}" "${base[@]}"
fi
OMP_NUM_THREADS=2 $armlet probe mt50 "${world[@]}" "${base[@]}"

teacher=${base:+$out}
teacher=${TEACHER:-${teacher:-out/mt50}/teacher}
for part in ${*:-tuning report late}; do
  students=()
  case $part in
    tuning)
      for recipe in ${RECIPES:-$levers $others}; do
        of "$recipe"
        make_student "$out/tuning/$recipe" "$recipe" "${world[@]}" "${options[@]}"
      done
      all_made
      for made in "${students[@]}"; do shortened "${made%/student}_after_$execute" "$made" --execute "$execute"; done
      shortened "$out/one_step" "$teacher" --steps 1
      shortened "$out/one_step_after_$execute" "$teacher" --steps 1 --execute "$execute"
      $armlet evaluate mt50 --name tuning "${world[@]}" "${acting[@]}" --out "$out/tuning" --policies "${students[@]}" \
        --evaluation.purpose tuning --evaluation.episodes "${TUNING:-500}" --evaluation.margin 0.02
      ;;
    report | late)
      for seed in ${SEEDS:-0 1 2}; do
        of "$chosen"
        make_student "$out/$chosen-$seed" "$chosen" "${world[@]}" "${options[@]}" --seed "$seed"
      done
      all_made
      students=()
      for seed in ${SEEDS:-0 1 2}; do
        shortened "$out/${chosen}_after_$execute-$seed" "$out/$chosen-$seed/student" --execute "$execute" --weights fp16
      done
      shortened "$out/one_step_after_$execute" "$teacher" --steps 1 --execute "$execute"
      ;;&
    report)
      $armlet evaluate mt50 --name flagship "${world[@]}" "${acting[@]}" --out "$out/report" --policies "${students[@]}" \
        --evaluation.purpose report --evaluation.seed 820000000 --evaluation.episodes "${EPISODES:-2000}" --evaluation.margin 0.02 \
        --evaluation.runtimes onnx
      $armlet report "$out/report/evaluation" --out "$out/report.html"
      ;;
    late) # other episodes of the report's seeds: those of the first plan are not looked at twice
      $armlet evaluate mt50 --name flagship_late "${world[@]}" "${acting[@]}" --out "$out/late" --policies "${students[@]}" \
        --evaluation.purpose report --evaluation.seed 860000000 --evaluation.episodes "${LATE:-250}" --evaluation.margin 0.02 \
        --evaluation.runtimes onnx --evaluation.slower ${SLOWER:-10 40} --evaluation.late wait
      $armlet report "$out/late/evaluation" --out "$out/late.html"
      ;;
    *) echo "no part $part; there are tuning, report and late" && exit 1 ;;
  esac
done
