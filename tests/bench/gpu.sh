#!/usr/bin/env bash
# The first minutes on a GPU: do the GPU tests pass, what does a training step take, how fast are images scored, and
# what does a training reach? At most 9 minutes, stopped by the clock.
#
#     python tests/bench/gpu_pack.py carried ...                     # where there is a network: wheels and images
#     bash tests/bench/gpu.sh --carried carried --out gpu-results    # where there is a GPU
#     bash tests/bench/gpu.sh --dry-run --out dry                    # anywhere: all parts with tiny sizes on a CPU
#
# Parts, in this order, each in processes of its own, so that a crash in one does not stop the next:
#
#     tests          the tests marked gpu (tests/gpu): a line for each
#     step-eager     a step of WRN-28-2 with 64 + 448 + 448 images, fixmatch and rsmatch, beside the reference
#     step-graphs    the same with CUDA graphs; the goal is 8 ms for rsmatch on an H200
#     score          photographs scored by ResNet-50 and a small PE-Core, and frozen features, against the networks alone
#     job            ingest, train and score of a crawl of photographs, as a person runs them
#     step-compiled  the step with torch.compile
#     step-cheap     with CUDA graphs, weak views without gradient
#     matrix         trainings on a contaminated pool side by side, with what time is left
#
# --out/lines.jsonl gets a line for each figure as soon as it is there, and one for each part that ends; --out/matrix.jsonl
# those of the trainings; --out/log.txt all output, with the profiles. The same command with the same --out goes on: it
# leaves out parts that are done and tests that have passed, and resumes trainings. After a change of the code name
# another --out. Options: --minutes N, --parts "NAME ...". It needs PyTorch, torchvision, timm, pytest and pyarrow;
# PYTHON names the interpreter. Exit code: 0 where all parts are done, else 1.
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bench=$root/tests/bench python=${PYTHON:-python3}
out=gpu-results carried=$root/carried minutes=9 device=cuda
parts="tests step-eager step-graphs score job step-compiled step-cheap matrix"
while (($#)); do
    case $1 in
    --dry-run) device=cpu && shift ;;
    --out) out=$2 && shift 2 ;;
    --carried) carried=$2 && shift 2 ;;
    --minutes) minutes=$2 && shift 2 ;;
    --parts) parts=$2 && shift 2 ;;
    *) echo "$1: no such option; use --dry-run, --out, --carried, --minutes or --parts." >&2 && exit 2 ;;
    esac
done

end=$((SECONDS + 60 * minutes))
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
lines=$out/lines.jsonl log=$out/log.txt
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH=$site:$root PYTHONUNBUFFERED=1
shopt -s nullglob
wheels=("$carried"/*.whl)
if ((${#wheels[@]})); then
    "$python" -m pip install -q --no-index --no-deps --no-compile --target "$site" "${wheels[@]}" >>"$log" 2>&1 ||
        echo "the wheels of $carried cannot be installed; see $log." >&2
fi

# What is tried out, and how long each part may take in seconds.
test=("$python" "$bench/gpu_tests.py" --lines "$lines" --device "$device")
step=("$python" "$bench/train_step.py" --device "$device" --lines "$lines" --profile)
score=("$python" "$bench/gpu_score.py" --device "$device" --lines "$lines" --profile)
job=("$python" "$bench/gpu_job.py" --device "$device" --lines "$lines")
[[ -e $carried/native ]] && job+=(--crawl "$carried/native")
matrix=("$python" "$bench/train_matrix.py" --device "$device" --out "$out/matrix.jsonl")
trials=(--contamination off-class --method fixmatch rsmatch rsmatch-oracle fixmatch-real)
if [[ $device == cuda ]]; then
    declare -A limit=([tests]=100 [step-eager]=75 [step-graphs]=100 [score]=80 [job]=90 [step-compiled]=75 [step-cheap]=75)
    step+=(--steps 50 --runs 3)
    graphs=cuda-graphs compiled=on
    matrix+=("${trials[@]}" --arrays "$carried/arrays.npz" --jobs 6 --num-steps 5000)
else
    declare -A limit
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    step+=(--batch 2 --steps 1 --runs 1 --threads 1)
    graphs=traced compiled=off # no code is generated, which takes minutes on a CPU
    score+=(--images 24 --features 4 --side 112 --size 64 --batch 8 --runs 1)
    job+=(--num-steps 8)
    score+=(--scored timm:test_resnet --read timm:test_resnet)
    matrix+=(--contamination off-class --method fixmatch rsmatch --seeds 1 --num-steps 4 --batch-size 4 --labels 12)
    matrix+=(--backbone small)
    if [[ -e $carried/arrays.npz ]]; then matrix+=(--arrays "$carried/arrays.npz"); else matrix+=(--toy); fi
fi

say() { # PART STATUS SECONDS EXIT
    printf '{"part": "%s", "status": "%s", "seconds": %d, "exit": %d}\n' "$@" | tee -a "$lines"
}

run() { # PART COMMAND...
    local part=$1 started=$SECONDS left=$((end - SECONDS - 5)) code=0 status=failed
    shift
    if grep -qs "^{\"part\": \"$part\", \"status\": \"done\"" "$lines"; then return; fi
    local allowed=${limit[$part]:-$left}
    ((allowed > left)) && allowed=$left
    if ((allowed < 10)); then
        say "$part" "no time was left" 0 0
        return 1
    fi
    echo "== $part, at most $allowed s: $*" >>"$log"
    timeout --kill-after=5 "$allowed" "$@" >>"$log" 2>&1 || code=$?
    case $code in
    0) status=done ;;
    3) status="to be continued" ;; # of train_matrix.py
    124 | 137) status="stopped by the clock" ;;
    esac
    say "$part" "$status" $((SECONDS - started)) $code
    ((code == 0)) || { tail -n 4 "$log" && return 1; }
}

failed=0
for part in $parts; do
    case $part in
    tests) run tests "${test[@]}" ;;
    step-eager) run step-eager "${step[@]}" --part step-eager ;;
    step-graphs) run step-graphs "${step[@]}" --part step-graphs --without-reference --compile $graphs ;;
    step-compiled) run step-compiled "${step[@]}" --part step-compiled --without-reference --compile $compiled ;;
    step-cheap)
        [[ $device == cuda ]] && how=$graphs || how=off
        run step-cheap "${step[@]}" --part step-cheap --without-reference --weak-gradient off --compile "$how"
        ;;
    score) run score "${score[@]}" ;;
    job) run job "${job[@]}" ;;
    matrix) run matrix "${matrix[@]}" --seconds $((end - SECONDS - 25)) ;; # a checkpoint takes it some seconds
    *) echo "$part: no such part" >&2 && false ;;
    esac || failed=1
done
exit $failed
