#!/usr/bin/env bash
# Set up what is missing: system packages that ffcv compiles against, a virtual environment, and the
# pinned dependencies. Nothing is done when the stamp inside the environment matches this tree.
# Variables: VENV (default .venv; a conda prefix works too), PYTHON (an interpreter, 3.10 to 3.12).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=${VENV:-.venv}
stamp="$venv/.harl_fast-setup"
begun="$venv/.harl_fast-begun" # there while this script makes the environment itself
log="$venv/setup.log"

# The folder belongs to the key: an editable install points at it.
key() { sha256sum pyproject.toml && pwd -P; }

stop() {
    printf '%s\n' "$@" >&2
    exit 2
}

supported() { # an interpreter of a version that pyproject.toml allows
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3.11 python3.12 python3.10 python3 python; do
        if supported "$candidate"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
        [ "$candidate" != "${PYTHON:-}" ] ||
            stop "error: PYTHON=$PYTHON is not a working Python 3.10, 3.11 or 3.12."
    done
    stop "error: no Python 3.10, 3.11 or 3.12 found. Install one (Debian 12, Ubuntu 24.04: python3," \
        "python3-venv, python3-dev; elsewhere by conda, uv or pyenv), then:" \
        "  make setup PYTHON=<its path>"
}

has_headers() {
    "$1" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")))'
}

missing_packages() { # Debian's names of what is not there
    local minor
    minor=$("$1" -c 'import sys; print("python3.%d" % sys.version_info[1])')
    command -v g++ >/dev/null || echo g++
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    "$1" -c 'import ensurepip' 2>/dev/null || echo "$minor-venv"
    has_headers "$1" || echo "$minor-dev"
}

install_packages() {
    local apt="apt-get install -y --no-install-recommends $*" root
    if command -v apt-get >/dev/null; then
        if [ "$(id -u)" = 0 ]; then
            root=
        elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
            root="sudo -n"
        else
            stop "These system packages are missing: $*" "Type this, then run the same again:" \
                "  sudo apt-get update && sudo $apt"
        fi
        echo "setup: installing system packages: $*"
        # shellcheck disable=SC2086
        $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive $apt -qq </dev/null ||
            stop "error: apt-get failed, see above. By hand: sudo apt-get update && sudo $apt"
        return
    fi
    stop "These are missing (Debian's names): $*" "Install them, then run the same again:" \
        "  Fedora: sudo dnf install gcc-c++ pkgconf-pkg-config opencv-devel turbojpeg-devel python3-devel" \
        "  conda:  conda env create -f environment.yml && conda activate harl_fast" \
        "          then give every make command VENV=\$CONDA_PREFIX"
}

install_python() {
    # DeepSpeed's own operators are not needed; all of pip's lines go to the log, a few are shown.
    DS_BUILD_OPS=0 "$venv/bin/python" -m pip install -e '.[dev]' </dev/null 2>&1 | tee "$log" |
        sed -unE '/^ *(Downloading .*([0-9]{3}\.[0-9] M|G)B|Building wheels|Installing collected|Successfully)/ {
            s/^(.{96}).*/\1 .../; p }'
}

fail_python() {
    tail -n 25 "$log" >&2 || true
    stop "" "error: $1 (all lines: $log)." \
        "Run \`make doctor\`: it names what is missing; then run \`make setup\` again."
}

if [ -f "$stamp" ]; then
    known=$(cat "$stamp")
    [ "$known" != "$(key)" ] || exit 0
    owner=${known##*$'\n'} # the folder that `key` printed last
    # An editable install points at one folder: set up from here, the other would run this code.
    [ "$owner" = "$(pwd -P)" ] || [ ! -e "$owner/pyproject.toml" ] ||
        stop "error: $venv belongs to $owner, which would run the code of $(pwd -P) from then on." \
            "Give this one its own (make ... VENV=.venv), or remove $stamp to hand $venv over."
fi

started=$SECONDS
if [ -e "$venv" ] && [ ! -e "$begun" ] && [ ! -x "$venv/bin/python" ]; then
    stop "error: $venv has no bin/python: it is no environment. Give VENV another name."
elif [ ! -e "$begun" ] && [ -x "$venv/bin/python" ]; then
    python="$venv/bin/python"
    supported "$python" ||
        stop "error: $venv holds another Python than 3.10 to 3.12. Remove it and run again."
    [ -z "${PYTHON:-}" ] || [ "$("$PYTHON" -V)" = "$("$python" -V)" ] ||
        stop "error: $venv holds $("$python" -V), not $PYTHON. Remove it to change the version."
else
    python=$(find_python)
fi

missing=$(missing_packages "$python" | tr '\n' ' ')
# shellcheck disable=SC2086
[ -z "${missing// /}" ] || install_packages ${missing}

if [ -e "$begun" ] || [ ! -x "$venv/bin/python" ]; then
    [ ! -e "$begun" ] || echo "setup: an earlier set-up of $venv was interrupted; beginning again"
    echo "setup: creating $venv with $python"
    mkdir -p "$venv" && : >"$begun"
    "$python" -m venv "$venv"
    rm "$begun" # packages cut off half-way are put right by pip, below
fi
echo "setup: installing the Python packages (about 6 GB with CUDA's libraries; log: $log)"
install_python || fail_python "pip failed"
"$venv/bin/python" -c 'import torch, torchvision, cv2, ffcv, deepspeed' >>"$log" 2>&1 ||
    fail_python "the packages are installed but do not import"
key >"$stamp.tmp" && mv "$stamp.tmp" "$stamp"
echo "setup: done in $((SECONDS - started)) s; environment: $venv"
