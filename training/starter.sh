#!/usr/bin/env bash
# Rebuilds the bundle inside the package: material, backbone, LoRA, merge, export, calibration, report.
#
#   training/starter.sh MANIFEST.csv [WORK]      WORK (default runs/starter) goes on where it stood
#
# Needs an environment with streamdet[export], Debian and ffmpeg; about two hours on two cores.
set -euo pipefail
manifest=$(realpath "$1")
here=$(dirname "$(realpath "$0")")
starter=$here/../streamdet/starter
work=${2:-runs/starter}
mkdir -p "$work"

# Bona fide speech of other makes, and spoof of every bona fide clip: each run makes only what is missing.
prompts=$work/prompts/manifest.csv
[[ -f $prompts ]] || python "$here/prompts.py" "$work/prompts"
streamdet synth "$manifest" --out "$work/synth" --per-clip 3 --min-s 0.8
streamdet synth "$prompts" --out "$work/prompts_synth" --per-clip 2 --min-s 0.8
streamdet synth "$manifest" --out "$work/gan" --systems gan,istft --per-clip 1 --gan-steps 3000 --min-s 0.8
streamdet synth "$prompts" --out "$work/prompts_gan" --systems gan,istft --per-clip 1 --vocoders "$work/gan/vocoders" --min-s 0.8
data=(--data "$manifest" --data "$prompts")
for made in synth prompts_synth gan prompts_gan; do
    data+=(--data "$work/$made/manifest.csv")
done

# A run that has begun has a recipe; its backbone, trained first, resumes by itself.
if [[ ! -f $work/run/metrics.json ]]; then
    resume=()
    [[ -f $work/run/recipe.json ]] && resume=(--resume)
    streamdet train starter.toml "${data[@]}" --out "$work/run" "${resume[@]}"
fi
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
streamdet export "$work/run" --data "$manifest" --out "$new/starter" --name starter --false-alarms-per-hour 4
streamdet evaluate "$starter" "$new/starter" --manifest "$manifest" --split dev --split test --streaming \
    --through mulaw --out "$work/report"
mv "$new"/starter/*.onnx "$new"/starter/manifest.json "$starter"
echo "old against new: $work/report/report.html"
