#!/usr/bin/env bash
# Ray on Slurm: `sbatch cluster/slurm.sh job.yaml`. The first node is head and hosts teachers, the
# others train; teachers and students go apart by the resources teacher_node and student_node.
#SBATCH --job-name=raybrew
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
set -euo pipefail

: "${1:?usage: sbatch slurm.sh JOB.yaml [--set a.b=c …]}"
port=6379
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

ray_on() { # node, kind of node, further options
  local node=$1 kind=$2
  shift 2
  srun --nodes=1 --ntasks=1 --nodelist="$node" --overlap \
    ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    --resources="{\"$kind\": 1000}" "$@" &
}

ray_on "$head" teacher_node --head --port="$port" --node-ip-address="$address" --dashboard-host=127.0.0.1
until srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap ray status --address="$address:$port" >/dev/null 2>&1; do
  sleep 2
done
for node in "${nodes[@]:1}"; do
  ray_on "$node" student_node --address="$address:$port"
done

# The driver runs on the head, as one of the job's steps: Slurm's SIGTERM reaches it in time to save.
srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap \
  env RAY_ADDRESS="$address:$port" raybrew distill "$@" &
driver=$!
trap 'kill -TERM "$driver"' TERM
wait "$driver"
