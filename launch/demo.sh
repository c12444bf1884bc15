#!/usr/bin/env bash
# The main job on the built-in world: makes .venv, installs the package there, trains, scores, draws.
#
#   bash launch/demo.sh [arguments of mlclip demo ...]
#
# Uses an NVIDIA GPU or a TPU where there is one. PYTHON names the interpreter, 3.11 or later, and VENV
# another folder than .venv.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=
if command -v nvidia-smi > /dev/null && nvidia-smi > /dev/null 2>&1; then
  extras=cuda
elif compgen -G "/dev/accel*" > /dev/null || compgen -G "/dev/vfio/[0-9]*" > /dev/null; then
  extras=tpu
fi
source launch/install.sh "$extras"
exec "$venv/bin/mlclip" demo --workdir=runs/demo "$@"
