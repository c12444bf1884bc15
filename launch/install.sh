# Sourced at the project's root: makes a virtual environment, and installs the package there with the extras
# given, once. PYTHON names the interpreter, 3.11 or later; VENV the environment's folder, .venv by default.

venv=${VENV:-.venv}

if [ ! -x "$venv/bin/python" ]; then
  for python in "${PYTHON:-}" python3 python3.13 python3.12 python3.11; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      break
    fi
    python=""
  done
  if [ -z "$python" ]; then
    echo "$0: error: no Python 3.11 or later here; install one, or name it: PYTHON=/path/to/python" >&2
    exit 2
  fi
  echo "making $venv with $("$python" --version)"
  "$python" -m venv "$venv" || { rm -rf "$venv"; exit 2; }  # what it says itself tells why
fi

# Installed once for each state of what says what to install.
wanted=$(cat setup.py pyproject.toml | cksum)
if [ "$(cat "$venv/installed-$1" 2>/dev/null)" != "$wanted" ]; then
  echo "installing mlclip-jax${1:+[$1]} and what it needs"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".${1:+[$1]}"
  echo "$wanted" > "$venv/installed-$1"
fi
