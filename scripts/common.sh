# Shared by the scripts beside it: where things are, one line of progress, one line for errors.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${HOLDFAST_CACHE:-$HOME/.cache/holdfast}
STARTED=$SECONDS
export PYTHONDONTWRITEBYTECODE=  # byte code is wanted: it halves the start of every later process

say() { printf '[%4ds] %s\n' $((SECONDS - STARTED)) "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The system's Python, because Debian's 3.11 is what the images have: extension modules are shared with the pods.
find_python() {
  local candidate
  for candidate in /usr/bin/python3 python3.11 python3; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  die "no Python >= 3.11 found: install python3 (Debian 12: apt-get install python3 python3-venv)"
}

# Content-addressed folder name: the same inputs give the same folder.
digest() { cat "$@" | sha256sum | cut -c1-12; }
