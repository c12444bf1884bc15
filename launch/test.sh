#!/usr/bin/env bash
# Makes .venv, installs the package there, and runs its tests; what is already done is not done again.
#
#   bash launch/test.sh [--parity] [arguments of pytest ...]
#
# --parity also installs torch, and compares with it. PYTHON names the interpreter, 3.11 or later.
set -euo pipefail
cd "$(dirname "$0")/.."

extras=test
if [ "${1:-}" = "--parity" ]; then
  extras=test,parity
  shift
fi

if [ ! -x .venv/bin/python ]; then
  for python in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      break
    fi
    python=""
  done
  if [ -z "$python" ]; then
    echo "launch/test.sh: error: no Python 3.11 or later here; install one, or name it: PYTHON=/path/to/python" >&2
    exit 2
  fi
  echo "making .venv with $("$python" --version)"
  "$python" -m venv .venv
fi

# Installed once for each state of what says what to install.
wanted=$(cat setup.py pyproject.toml | cksum)
if [ "$(cat ".venv/installed-$extras" 2>/dev/null)" != "$wanted" ]; then
  echo "installing mlclip-jax[$extras] and what it needs"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extras]"
  echo "$wanted" > ".venv/installed-$extras"
fi

.venv/bin/ruff check --quiet .
.venv/bin/ruff format --quiet --check .
exec .venv/bin/python -m pytest "$@"
