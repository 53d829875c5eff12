#!/usr/bin/env bash
# The first hour of a newcomer, command by command: install, doctor, train, watch, kill -9, resume, evaluate with a
# video, plot, report, export. Prints what each step took; the first that fails ends it with exit code 1.
#
#     bash tests/stress/first_hour.sh           # in a fresh clone and a fresh virtual environment
#     bash tests/stress/first_hour.sh --here    # with what is installed already
set -euo pipefail
checkout=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap '[ ! -f "$work/pid" ] || kill -9 "$(cat "$work/pid")" 2>/dev/null || true; rm -rf "$work"' EXIT
began=$SECONDS

step() { # step NAME COMMAND...: run it, say how long it took
    local name=$1 from=$SECONDS
    shift
    "$@" >"$work/step.log" 2>&1 || { echo "FAILED: $name"; tail -n 40 "$work/step.log"; exit 1; }
    printf '%5d s  %s\n' $((SECONDS - from)) "$name"
}

install() {
    git clone -q "$checkout" "$work/fdql"
    python3 -m venv "$work/venv"
    source "$work/venv/bin/activate"
    cd "$work/fdql"
    pip install -q -c constraints.txt -e ".[classic,video,plot,onnx]" onnxruntime
}

train_until_a_checkpoint() { # in the background, and watched
    fdql train --env Pendulum-v1 --seed 1 --stop-at-return never --total-timesteps 1000000 --checkpoint-every 3 \
        --run-dir "$work/first" >"$work/train.log" 2>&1 &
    echo $! >"$work/pid"
    for _ in $(seq 6000); do # ten minutes: the very first run compiles the kernels
        if compgen -G "$work/first/checkpoints/0*" >/dev/null && grep -q 'eval/updates' "$work/first/metrics.jsonl"; then
            return 0
        fi
        kill -0 "$(cat "$work/pid")" || { cat "$work/train.log"; return 1; }
        sleep 0.1
    done
    cat "$work/train.log"
    return 1
}

kill_it() { # SIGKILL: nothing of the run may be left
    local pid children
    pid=$(cat "$work/pid")
    children=$(pgrep -P "$pid" | tr '\n' ' ')
    [ -n "$children" ]
    tail -n 1 "$work/first/metrics.jsonl"
    kill -9 "$pid"
    sleep 2
    for child in $children; do
        ! kill -0 "$child" 2>/dev/null || { echo "process $child is left"; return 1; }
    done
}

resume() {
    local at
    at=$(ls "$work/first/checkpoints" | grep -o 'updates-.*' | sort -t- -k2 -n | tail -n 1)
    fdql resume "$work/first" --total-timesteps 30000 --seed 1
    python - "$work/first" "${at#updates-}" <<'PY'
import json, sys
summary = json.load(open(sys.argv[1] + "/summary.json"))
assert summary["exit_reason"] == "total_timesteps", summary["exit_reason"]
assert summary["updates"] > int(sys.argv[2]), (summary["updates"], sys.argv[2])
PY
}

evaluate() {
    fdql eval "$work/first" --episodes 10 --video
    compgen -G "$work/first/videos/*.mp4"
}

pictures() {
    fdql plot "$work/first" --out "$work/curves.png"
    fdql report "$work/first" --out "$work/report.html"
    test -s "$work/curves.png" -a -s "$work/report.html"
}

export_it() {
    fdql export "$work/first" --out "$work/policy.onnx"
    python - "$work/first" "$work/policy.onnx" <<'PY'
import sys
import fdql, numpy, onnxruntime
obs = numpy.array([[1.0, 0.0, 0.0], [0.0, 1.0, -2.0]], dtype=numpy.float32)
(action,) = onnxruntime.InferenceSession(sys.argv[2]).run(None, {"observation": obs})
assert numpy.allclose(action, fdql.load(sys.argv[1]).predict(obs), atol=1e-4)
PY
}

if [ "${1:-}" != --here ]; then
    step "install, in a fresh environment" install
    source "$work/venv/bin/activate"
    cd "$work/fdql"
fi
step "doctor" fdql doctor
step "train, until the first evaluation and checkpoint" train_until_a_checkpoint
step "kill -9: no process is left" kill_it
step "resume, to 30,000 steps" resume
step "evaluate, with a video" evaluate
step "plot and report" pictures
step "export, and act as predict does" export_it
echo "the first hour took $((SECONDS - began)) s"
