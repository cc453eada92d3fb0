# What the scripts here have in common: a suitable Python, and a virtual environment with this package in it.
# Sourced, never run. Two variables say what to use:
#   PYTHON  the interpreter (else the virtual environment's own, else the first suitable one on the PATH)
#   VENV    the virtual environment, from the repository's root (else .venv)

set -euo pipefail
unset CDPATH
[[ ${PYTHON:-} != [!/]*/* ]] || PYTHON=$PWD/$PYTHON
cd -P "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${VENV:-.venv}
[[ $venv == /* ]] || venv=$PWD/$venv

fail() {
    printf '%s: %s\n' "scripts/${0##*/}" "$*" >&2
    exit 1
}

# Prints what tells one Python from another, as "3.11.7 /usr"; fails where this one does not run or is too old.
python_identity() {
    "$1" -c 'import sys
print("%d.%d.%d %s" % (sys.version_info[:3] + (getattr(sys, "base_prefix", ""),)))
sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

# Sets python to an interpreter that runs, is new enough and can make virtual environments, or says in one line
# why there is none. A command that exists may still not run: pyenv's shims fail for versions not selected.
find_python() {
    local candidate candidates identity seen=""
    candidates=(python3.13 python3.12 python3.11 python3)
    [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if ! command -v "$candidate" >/dev/null; then
            seen+="; $candidate: not found"
        elif ! identity=$(python_identity "$candidate"); then
            identity=${identity%% *}
            seen+="; $candidate: ${identity:-does not run}"
        elif ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then
            seen+="; $candidate: ${identity%% *}, but without its venv or ensurepip module"
            seen+=" (on Debian and Ubuntu: apt install python3-venv, or python${identity%.* *}-venv)"
        else
            python=$candidate
            return
        fi
    done
    fail "needs Python 3.11 or newer (PYTHON=... names one)$seen"
}

# The virtual environment serves as it is if its Python runs, is new enough, has pip, and is the one PYTHON asks for.
venv_is_usable() {
    local identity
    identity=$(python_identity "$venv/bin/python") && [[ -x $venv/bin/pip ]] || return
    [[ -z ${PYTHON:-} ]] || [[ $identity == "$(python_identity "$PYTHON")" ]]
}

# set_up EXTRA...: installs this package, editable, with these extras into the virtual environment, made where it
# is missing. Sets bin to its directory of programs. Does nothing where a former run did the same: each set of
# extras leaves a stamp, which holds all that the installation depends on.
set_up() {
    local extras python stamp wanted
    extras=$(IFS=,; printf '%s' "$*")
    bin=$venv/bin
    if ! venv_is_usable; then
        find_python
        [[ ! -e $venv || -e $venv/pyvenv.cfg ]] || fail "$venv is no virtual environment: move it away, or set VENV"
        printf 'Making %s with %s\n' "$venv" "$python" >&2
        "$python" -m venv --clear "$venv" || fail "$python could not make the virtual environment $venv (see above)"
    fi
    stamp=$venv/.installed-$extras
    wanted=$(printf '%s\n' "$venv" "$(python_identity "$bin/python")"; cat pyproject.toml)
    [[ ! -e $stamp || $(<"$stamp") != "$wanted" ]] || return 0
    printf 'Installing trio-ws-server[%s]\n' "$extras" >&2
    "$bin/python" -m pip install -qq --disable-pip-version-check --editable ".[$extras]" ||
        fail "pip could not install trio-ws-server[$extras] (see above)"
    printf '%s\n' "$wanted" >"$stamp"
}
