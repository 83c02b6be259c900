#!/usr/bin/env bash
# VLA-AD's student against a teacher 44 times larger, with the words and without. Teaching 44.8 M parameters is for a machine with a
# GPU, which every verb uses where there is one; resumable.
set -euo pipefail
cd "$(dirname "$0")/.."
armlet=${ARMLET:-.venv/bin/armlet}

$armlet collect tabletop --collection.workers "$(nproc)"
[[ -e out/vla_ad_large/teacher/config.json ]] || $armlet teach vla_ad_large
$armlet probe vla_ad_large
$armlet distil vla_ad_large
$armlet distil vla_ad_large_action_kd
$armlet evaluate vla_ad_large --evaluation.episodes 1000 --policies out/vla_ad_large_action_kd/student
