"""The same as several.slurm, with submitit, which also runs tasks on this machine:

python runs/several_submitit.py --tasks 8 --cluster slurm -- evaluate actdistill_tabletop --out OUT
"""

import argparse
import subprocess
import sys


def work(arguments: list[str]) -> None:
    subprocess.run([sys.executable, "-m", "armlet", *arguments], check=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--cluster", default="local", help="local, slurm")
    parser.add_argument("--minutes", type=int, default=240)
    parser.add_argument("--cpus", type=int, default=1)
    parser.add_argument("--logs", default="out/submitit")
    parser.add_argument("arguments", nargs="+", help="of armlet, behind --")
    asked = parser.parse_args()
    import submitit

    executor = submitit.AutoExecutor(folder=asked.logs, cluster=asked.cluster)
    executor.update_parameters(timeout_min=asked.minutes, cpus_per_task=asked.cpus)
    arguments = [*asked.arguments, "--shards.on", "processes"]
    jobs = [executor.submit(work, arguments) for _ in range(asked.tasks)]
    for job in jobs:
        job.result()


if __name__ == "__main__":
    main()
