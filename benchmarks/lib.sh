# What the scripts here have in common: the virtual environment of the benchmarks, .venv-benchmarks unless VENV says
# otherwise, with the other servers in it; the programs in C. Sourced.

: "${VENV:=.venv-benchmarks}"
source "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"
set_up standard benchmarks
"$bin/python" -m benchmarks.programs
