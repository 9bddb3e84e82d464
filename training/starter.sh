#!/usr/bin/env bash
# Rebuilds the bundle inside the package: backbone, LoRA, merge, export, calibration, figures.
#
#   training/starter.sh MANIFEST.csv [RUN]       RUN (default runs/starter) resumes where it stood
#
# Needs an environment with streamdet[export]; under two hours on two cores.
set -euo pipefail
manifest=$(realpath "$1")
run=${2:-runs/starter}
starter=$(realpath "$(dirname "$0")/../streamdet/starter")

# A run that has begun has a recipe; its backbone, trained first, resumes by itself.
if [[ ! -f $run/metrics.json ]]; then
    resume=()
    [[ -f $run/recipe.json ]] && resume=(--resume)
    streamdet train starter.toml --data "$manifest" --out "$run" "${resume[@]}"
fi
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
# At 1 false alarm an hour, the default, this small model would never alarm at all.
streamdet export "$run" --data "$manifest" --out "$new" --false-alarms-per-hour 4
mv "$new"/model.onnx "$new"/manifest.json "$starter"
for split in dev test; do
    echo "$split"
    streamdet evaluate "$starter" --manifest "$manifest" --split "$split"
done
