#!/usr/bin/env bash
# Several hosts by hand: run this on every host at about the same time. It starts one rank there or, with PROCESSES,
# that many: one for each of the host's GPUs.
#
#   examples/torchrun.sh HOSTS HOST_NUMBER ADDRESS_OF_HOST_0 [EXPERIMENT [options of `stanza-sim run`]]
#   examples/torchrun.sh 2 0 10.0.0.1      # on 10.0.0.1
#   examples/torchrun.sh 2 1 10.0.0.1      # on the other one
#   PROCESSES=8 examples/torchrun.sh 2 0 10.0.0.1 MY_EXPERIMENT --set cluster=hgx-h100    # two hosts of eight GPUs
#
# The topology must have as many devices on each host as PROCESSES says. MASTER_PORT (29500 if not set) must be free on
# host 0. Host 0 prints the table. The ranks of all hosts need the same versions, the same experiment, and a network
# interface by which they reach each other: see README.md.
set -euo pipefail

if [ "$#" -lt 3 ]; then
    echo "usage: $0 HOSTS HOST_NUMBER ADDRESS_OF_HOST_0 [EXPERIMENT [OPTION...]]" >&2
    exit 2
fi
hosts=$1
number=$2
address=$3
shift 3
if [ "$#" -eq 0 ]; then
    set -- "$(dirname -- "$0")/experiment.yaml"
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # torchrun would set it, and say so

exec torchrun --nnodes "$hosts" --node-rank "$number" --nproc-per-node "${PROCESSES:-1}" \
    --master-addr "$address" --master-port "${MASTER_PORT:-29500}" \
    -m stanza_sim run "$@" --execute --set "nodes=$hosts"
