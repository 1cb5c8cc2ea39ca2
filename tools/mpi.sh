#!/usr/bin/env bash
# Installs what the feature mpi is built with and started by, on Debian and its like: an MPI library with mpicc and mpirun, and
# libclang. `tools/mpi.sh mpich` takes MPICH in place of Open MPI.
set -euo pipefail
case "${1:-openmpi}" in
    openmpi) packages=(openmpi-bin libopenmpi-dev libclang-dev) ;;
    mpich) packages=(mpich libmpich-dev libclang-dev) ;;
    *) echo "tools/mpi.sh: expected openmpi or mpich, found $1" >&2; exit 2 ;;
esac
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null
