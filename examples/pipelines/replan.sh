#!/usr/bin/env bash
# Plans anew from the newest recording, and replaces the plan that is served only by a better one.
#
#   MODEL        the model's config.json, from Hugging Face
#   RECORDING    what the engine recorded: a file, or the folder of all ranks
#   GPUS         GPUs in all
#   PLANS        folder of instance.yaml, placement.json and plan.json that are served; made by the first run
#   FORMAT       the engine's file (sglang, vllm-plan, trtllm ...)                 [sglang]
#   INIT         further options of `moe-placer init`                              []
#   MAX_GAP      largest gap to the bound with which a plan is taken               [5%]
#   MIN_GAIN     least gain over the plan that is served, on the new recording     [2%]
#   TIME_LIMIT   seconds of search                                                 [600]
#   WORKERS      processes of the search                                           [all cores]
#
# Exit code: 0 where a new plan is served or the present one is kept, else that of the command that failed.
set -euo pipefail

: "${MODEL:?}" "${RECORDING:?}" "${GPUS:?}" "${PLANS:?}"
export MOE_PLACER_LOG=json

mkdir -p "$PLANS"
new=$(mktemp -d "$PLANS/.new.XXXXXX")
trap 'rm -rf "$new"' EXIT
cp "$MODEL" "$new/config.json"

moe-placer import "$RECORDING" -o "$new/recording.npz"
# INIT is split into words on purpose.
# shellcheck disable=SC2086
moe-placer init --model "$new/config.json" --recording "$new/recording.npz" --gpus "$GPUS" ${INIT:-} -o "$new/instance.yaml"
moe-placer solve "$new/instance.yaml" -o "$new/out" --no-dag --time-limit "${TIME_LIMIT:-600}" ${WORKERS:+--workers "$WORKERS"}

limits=(--max-gap "${MAX_GAP:-5%}")
if [[ -f "$PLANS/placement.json" ]]; then
  limits+=(--current "$PLANS/placement.json" --min-gain "${MIN_GAIN:-2%}")
fi
if moe-placer gate "$new/instance.yaml" "$new/out/placement.json" "${limits[@]}" --json > "$new/gate.json"; then
  moe-placer export "$new/instance.yaml" "$new/out/placement.json" --format "${FORMAT:-sglang}" -o "$PLANS/plan.json"
  moe-placer check-file "$PLANS/plan.json" --format "${FORMAT:-sglang}" --instance "$new/instance.yaml"
  mv "$new"/recording.npz "$new"/instance.yaml "$new"/gate.json "$PLANS/"
  mv "$new/out/placement.json" "$PLANS/placement.json"
else
  code=$?
  [[ $code -eq 6 ]] || exit "$code" # 6: the new plan is not good enough, so the present one stays
  cp "$new/gate.json" "$PLANS/rejected.json"
fi
