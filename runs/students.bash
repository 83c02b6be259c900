# For the scripts beside it: students are trained two at a time, each on one thread; twice one thread trains more in an hour than once
# two do. `students` collects their folders; one that is made already is not made again.
armlet=${ARMLET:-.venv/bin/armlet}
students=()
export OMP_NUM_THREADS=1

make_student() { # folder, recipe, options …
  local folder=$1 recipe=$2
  shift 2
  students+=("$folder/student")
  if [[ ! -e $folder/student/config.json ]]; then
    while (($(jobs -rp | wc -l) >= 2)); do wait -n; done
    $armlet distil "$recipe" --name "${folder##*/}" --out "$folder" "$@" &
  fi
}

all_made() {
  while (($(jobs -rp | wc -l) > 0)); do wait -n; done
}

shortened() { # folder, policy, options of `armlet shorten`: what it can have untrained, which any lighter student has to beat
  local folder=$1 policy=$2
  shift 2
  students+=("$folder")
  if [[ -e $policy/config.json ]]; then
    $armlet shorten "$policy" --out "$folder" "$@" # finds it done, or refuses one of another policy
  fi
}
