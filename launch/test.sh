#!/usr/bin/env bash
# Makes .venv, installs the package there, and runs its tests; what is already done is not done again.
#
#   bash launch/test.sh [--parity] [arguments of pytest ...]
#
# --parity also installs torch, and compares with it. Each core runs tests of its own, four at the most, as some
# need gigabytes; `-n 0` runs them one by one, and shows what they print. PYTHON names the interpreter, 3.11 or
# later, and VENV another folder than .venv, as for the tests on another Python.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=test
if [ "${1:-}" = "--parity" ]; then
  extras=test,parity
  shift
fi

source launch/install.sh "$extras"
"$venv/bin/ruff" check --quiet .
"$venv/bin/ruff" format --quiet --check .
"$venv/bin/ty" check --quiet --output-format concise --python "$venv"
exec "$venv/bin/python" -m pytest -n auto --maxprocesses 4 --dist loadscope --no-loadscope-reorder --durations=10 "$@"
