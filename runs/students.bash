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

in_steps() { # folder, teacher, steps: a teacher that denoises, in fewer steps and untrained: what any lighter student has to beat
  students+=("$1")
  if [[ -e $2/config.json && ! -e $1/config.json ]]; then
    .venv/bin/python - "$@" <<'MADE'
import sys
from pathlib import Path

from armlet.policies.checkpoint import load_policy, save_policy
from armlet.policies.lighter import LighterHead
from armlet.policies.students import Whole

folder, teacher, steps = sys.argv[1:]
policy = LighterHead(Whole(), steps=int(steps)).build(load_policy(Path(teacher)))
save_policy(policy, Path(folder), provenance={"untrained": f"{teacher} in {steps} steps"})
MADE
  fi
}
