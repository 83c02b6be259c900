#!/usr/bin/env bash
# The tables on many tasks: Meta-World's (BASE=mt50, ml45 or mt10) or LIBERO's (libero_object, libero_spatial; each needs its extra).
# Episodes, a teacher, its traces; every student of every budget and seed, all of one base with the same steps, batches and first
# weights; the teacher's longest `execute`; then all in one plan of report, in ONNX Runtime, the teacher in eager and int8 as
# well; and what they listen to. Hours (docs/many-tasks.md says how many), so in the background:
#   BASE=mt50 nohup bash runs/many_tasks.sh > mt50.log &         Killed, it goes on where it stopped when it is run again.
#   SEEDS="0 1 2" BUDGETS="25 50" EPISODES=500                   how many
#   POLICIES="first_k layer_search actdistill" WHOLE="bc_whole"  which: those at budgets, and those that have none
#   SYSTEMS="vla_ad vita_vla aed"                                the other systems as well; the last two teach teachers of their own
#   STEPS="2"                                                    Meta-World's teacher in so many denoising steps, untrained, as rows as well; "": none
#   STUDENT_STEPS="1"                                            the same of every student: as it is, and in so many steps
#   EXECUTE="8"                                                  everybody once more, carrying out so many actions before looking again
#   TABLE=free                                                   the folder of the table, where there are several
#   RUNTIMES="eager onnx" TEACHER_RUNTIMES="onnx_int8"           students in these, and the teacher in eager and in these as well
#   PARTS="collect teach probe students calibrate evaluate audit" some of it; TEACHER=DIR: a teacher that is there
#   THREADS=1                                                    of teaching and probing: fewer where something else runs
#   LOOK=2                                                       the same table with other policies is another look, and says so
#   SMOKE=1                                                      all of it in minutes: a tiny network, a few steps; says nothing
set -euo pipefail
cd "$(dirname "$0")/.."
source runs/students.bash
base=${BASE:-mt50}
out=${OUT:-out/$base}
seeds=${SEEDS:-0}
budgets=${BUDGETS:-25 50}
at_budgets=${POLICIES-actdistill faithful action_kd published_budget first_k layer_drop layer_search random_skip bc_warm bc}
whole=${WHOLE-bc_whole}
systems=${SYSTEMS-}
steps=${STEPS-2}
if [[ $base == libero* ]]; then
  if [[ -n ${STEPS-}${STUDENT_STEPS-} ]]; then
    echo "STEPS and STUDENT_STEPS are about teachers that denoise, and that of $base says its actions outright" && exit 1
  fi
  steps=
fi
parts=${PARTS:-collect teach probe students calibrate evaluate audit}
episodes=${EPISODES:-500}
calibrate=${CALIBRATE:-500}
audit=${AUDIT:-100}
workers=${WORKERS:-2}
shared=(--episodes "$out/episodes" --shared "$out" --teacher "${TEACHER:-$out/teacher}")
network=() teach=() probe=() collect=() world=() lighter=()
if [[ -n ${SMOKE:-} ]]; then
  # As deep as the real one, since budgets are shares of its layers.
  out=${OUT:-out/smoke_$base}
  shared=(--episodes "$out/episodes" --shared "$out" --teacher "$out/teacher")
  network=(--network.width 32 --network.heads 2 --network.vision-channels 8)
  collect=(--collection.episodes 20 --collection.workers 1)
  teach=(--teach.steps 20 --teach.batch-size 16 --teach.no-compile)
  probe=(--probe.stage.steps 5 --probe.stage.batch-size 16)
  budgets=${BUDGETS:-25} episodes=${EPISODES:-4} calibrate=${CALIBRATE:-2} audit=${AUDIT:-1}
  # Nobody succeeds after so few steps of training: episodes that soon end, and few timings.
  world=(--benchmark.step-limit 12)
  lighter=(--evaluation.latency-calls 8 --evaluation.videos 0)
fi
table=$out/${TABLE:-table}

part() { # name: whether it is asked for; says when it began
  [[ " $parts " == *" $1 "* ]] || return 1
  echo "[$(date -u +%H:%M:%S), after $((SECONDS / 60)) min] $base: $1"
}

two_cores() { OMP_NUM_THREADS=${THREADS:-2} $armlet "$@"; }

student() { # folder, recipe; one that is there already counts in every part
  if [[ " $parts " != *" students "* ]]; then
    if [[ -e $1/student/config.json ]]; then students+=("$1/student"); fi
    return
  fi
  local options=() stages=1 stage
  if [[ -n ${SMOKE:-} ]]; then
    case $2 in
      actdistill* | faithful* | action_kd* | blind* | published_router*) stages=2 ;;
      vita_vla_${base} | vita_vla_shuffled* | aed*) stages=2 ;;
    esac
    for ((stage = 0; stage < stages; stage++)); do
      options+=("--stages.$stage.steps" 3 "--stages.$stage.batch-size" 8 "--stages.$stage.no-compile")
    done
    case $2 in
      vita_vla* | aed*) ;;
      *) options+=("${probe[@]}") ;;
    esac
    case $2 in
      layer_search*) options+=(--student.frames 16 --student.beam 1 --student.exhaustive 1) ;;
    esac
  fi
  case $2 in # teachers of their own, and so traces of their own
    vita_vla* | aed*) make_student "$1" "$2" --episodes "$out/episodes" --seed "$seed" "${options[@]}" ;;
    *) make_student "$1" "$2" "${shared[@]}" --seed "$seed" "${options[@]}" ;;
  esac
}

if part collect; then
  $armlet collect "$base" "${shared[@]}" "${collect[@]}"
fi
if part teach && [[ ! -e ${TEACHER:-$out/teacher}/config.json ]]; then
  two_cores teach "$base" "${shared[@]}" --out "$out" "${network[@]}" "${teach[@]}"
fi
if part probe; then
  two_cores probe "$base" "${shared[@]}" --out "$out" "${probe[@]}"
fi

of_systems=()
for system in $systems; do
  case $system in
    vla_ad) of_systems+=(vla_ad vla_ad_action_kd vla_ad_bc vla_ad_shuffled vla_ad_constant) ;;
    vita_vla) of_systems+=(vita_vla vita_vla_finetune vita_vla_shuffled) ;;
    aed) of_systems+=(aed aed_action_only aed_bc) ;;
    *) echo "no system $system; there are vla_ad, vita_vla and aed" && exit 1 ;;
  esac
done
if [[ " $systems " == *" vla_ad "* && $base == m* ]]; then of_systems+=(vla_ad_truth vla_ad_phase_codes); fi
if part probe; then # what each system's teacher and annotators say
  for recipe in ${of_systems[@]+"${of_systems[@]}"}; do
    case $recipe in
      vla_ad_bc | vla_ad_action_kd) ;; # no words
      vla_ad*) two_cores probe "${recipe}_$base" "${shared[@]}" "${probe[@]}" ;;
      vita_vla | aed)
        if [[ ! -e out/${recipe}_$base/student/config.json ]]; then
          two_cores teach "${recipe}_$base" --episodes "$out/episodes" "${teach[@]}"
          two_cores probe "${recipe}_$base" --episodes "$out/episodes"
        fi
        ;;
    esac
  done
fi

if part students; then
  count=$(($(wc -w <<<"$at_budgets") * $(wc -w <<<"$budgets") + $(wc -w <<<"$whole") + ${#of_systems[@]}))
  echo "$((count * $(wc -w <<<"$seeds"))) students, two at a time, each 10 to 40 minutes of a core"
fi
begin=$SECONDS
for count in $steps; do
  shortened "$out/students/teacher_in_$count" "${TEACHER:-$out/teacher}" --steps "$count"
done
for seed in $seeds; do
  for recipe in $at_budgets; do
    for budget in $budgets; do
      student "$out/students/$recipe-$budget-$seed" "${recipe}_${base}_$budget"
    done
  done
  for recipe in $whole ${of_systems[@]+"${of_systems[@]}"}; do
    student "$out/students/$recipe-$seed" "${recipe}_$base"
  done
done
all_made
for count in ${STUDENT_STEPS-}; do
  for made in "${students[@]}"; do
    if [[ $made == */student ]]; then shortened "${made%/student}_in_$count" "$made" --steps "$count"; fi
  done
done
if part students >/dev/null; then echo "students took $(((SECONDS - begin) / 60)) min"; fi

if part calibrate; then # the teacher's longest `execute`, on episodes of its own
  $armlet calibrate "$base" "${shared[@]}" --out "$table" --calibration.episodes "$calibrate" --calibration.workers "$workers" \
    "${world[@]}"
fi
if part evaluate; then
  split=()
  if [[ $base == libero* ]]; then split=(--evaluation.splits official); fi # at most 500 episodes: they have 50 states a task
  of_teacher=${TEACHER_RUNTIMES-onnx_int8}
  ways=(--evaluation.runtimes ${RUNTIMES:-onnx} ${of_teacher:+--evaluation.teacher-runtimes $of_teacher}
    ${EXECUTE:+--evaluation.execute $EXECUTE})
  $armlet evaluate "$base" --name "$base" "${shared[@]}" --out "$table" --policies "${students[@]}" \
    --evaluation.purpose report --evaluation.look "${LOOK:-1}" --evaluation.episodes "$episodes" --evaluation.workers "$workers" \
    "${ways[@]}" "${split[@]}" \
    "${world[@]}" "${lighter[@]}"
  $armlet report "$table/evaluation" --out "$table/report.html"
fi
if part audit; then
  $armlet audit "${TEACHER:-$out/teacher}" "${students[@]}" --count "$audit" --workers "$workers" --out "$table/audit"
fi
echo "[after $((SECONDS / 60)) min] $table: evaluation/table.md, evaluation/report.json, report.html, audit/audit.md"
