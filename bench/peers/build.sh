#!/usr/bin/env bash
# Build the peers' virtual environments, one each, in DIR (default: build/peers of this checkout), where
# bench/learning.py and bench/throughput.py look for them. CPython 3.11: pybullet has no wheels above it.
# PYTHON chooses another.
#   bash bench/peers/build.sh [DIR]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:-$here/../../build/peers}
for peer in sb3 sbx sample-factory rltools envpool; do
    "${PYTHON:-python3}" -m venv "$dir/$peer"
    "$dir/$peer/bin/python" -m pip install -r "$here/requirements-$peer.txt"
done
# Asks for a newer gymnasium than Sample Factory allows, and works with the older one.
"$dir/sample-factory/bin/python" -m pip install --no-deps pybullet_envs_gymnasium==0.6.0
