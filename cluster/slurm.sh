#!/usr/bin/env bash
# Ray across a Slurm allocation, and one job file on it.
#
#     sbatch --nodes=4 --gpus-per-node=8 cluster/slurm.sh [sweep] JOB PROFILE [options of `shoal run` or `shoal sweep`]
#
# PROFILE is of kind: ray with address: auto (a copy of cluster/ray.yaml): this script tells Ray where its head is. Its `workers`
# says how many GPUs are used: min and max, or 32 for the line above. The run's id holds
# Slurm's job id, so a job that Slurm requeues goes on with its run. Five minutes before the time limit the run finishes its
# step, saves and leaves, and the job is queued again, SHOAL_RESTARTS times at most (20). `scancel --full` saves and leaves.
# The profile's variables with keys have to be in the environment that sbatch was called with; Slurm passes them on.
#
#SBATCH --job-name=shoal
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

verb=(run)
if [[ ${1:-} == sweep ]]; then
    verb=(sweep run)
    shift
fi
if (($# < 2)); then
    echo "usage: sbatch [options of sbatch] cluster/slurm.sh [sweep] JOB PROFILE [options of shoal run or shoal sweep]" >&2
    exit 2
fi
if [[ -z ${SLURM_JOB_ID:-} || -z ${SLURM_JOB_NODELIST:-} ]]; then
    echo "slurm.sh: this is no Slurm job; submit it with sbatch" >&2
    exit 2
fi
job=$1 profile=$2
shift 2

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # where this script runs
others=$((${#nodes[@]} - 1))
cpus=${SLURM_CPUS_PER_TASK:-${SLURM_CPUS_ON_NODE:-1}}
port=$((20000 + SLURM_JOB_ID % 20000)) # another job's Ray may be on the same node
up_s=${SHOAL_UP_S:-180}
restarts=${SHOAL_RESTARTS:-20}

# Whoever has an account here can reach the ports: without the token nobody but this job is heard.
RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_MODE RAY_AUTH_TOKEN

steps=() # srun's of Ray
driver=
ending=

# shellcheck disable=SC2317  # traps call it
leave() {
    if ((${#steps[@]})); then kill "${steps[@]}" 2>/dev/null || true; fi
    wait || true
}
# The driver is asked once: it saves and leaves. A second time would mean at once.
# shellcheck disable=SC2317
ask() { [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true; }
trap leave EXIT
trap 'ending=limit; ask' USR1
trap 'ending=asked; ask' TERM

ray_on() { # NODES HOW-MANY OPTIONS...: Ray on these nodes, for as long as the job lasts
    local where=$1 count=$2
    shift 2
    srun --overlap --nodes="$count" --ntasks="$count" --ntasks-per-node=1 --cpus-per-task="$cpus" --nodelist="$where" \
        --kill-on-bad-exit=0 ray start "$@" --num-cpus="$cpus" --block --disable-usage-stats \
        --min-worker-port=0 --max-worker-port=0 --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
    steps+=($!)
}

address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | tr ' ' '\n' | grep -v '^127\.' | head -n 1)
if [[ -z $address ]]; then
    echo "slurm.sh: $head has no address that other nodes could reach" >&2
    exit 5
fi
export RAY_ADDRESS=$address:$port

ray_on "$head" 1 --head --node-ip-address="$address" --port="$port" --include-dashboard=false
deadline=$((SECONDS + up_s))
until ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1; do
    if ! kill -0 "${steps[0]}" 2>/dev/null || ((SECONDS >= deadline)); then
        echo "slurm.sh: Ray did not come up on $head ($RAY_ADDRESS) within $up_s s; what it said is above" >&2
        exit 5
    fi
    sleep 1
done
if ((others)); then
    rest=$(IFS=,; echo "${nodes[*]:1}")
    ray_on "$rest" "$others" --address="$RAY_ADDRESS"
fi

[[ -z $ending ]] || exit 143 # asked to leave before there was anything to save

# Nodes that are slow to join are waited for by the profile's wait_s.
name=$(basename "${job%.*}")
name=$(tr -c 'a-z0-9\n' '-' <<<"${name,,}" | sed 's/^-*//')
shoal "${verb[@]}" "$job" --on "$profile" --run-id "${SHOAL_RUN_ID:-${name:0:40}-slurm-$SLURM_JOB_ID}" "$@" &
driver=$!

status=0
wait "$driver" || status=$?
while kill -0 "$driver" 2>/dev/null; do # a signal ended the wait, not the driver
    status=0
    wait "$driver" || status=$?
done

if [[ $ending == limit && $status -eq 143 ]] && ((${SLURM_RESTART_COUNT:-0} < restarts)); then
    echo "slurm.sh: the time limit is near, the run is saved: queued again" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
