#!/bin/bash
# 2 nodes of 8 GPUs train the shipped model 'hisac': sbatch slurm.sh
# Written by `make submissions`, explained in docs/launching.md. EDIT these values,
# wherever they stand below:
#   /shared/data/shop                   prepared data with semantic IDs, on storage that all hosts share
#   /shared/runs/shop                   folder of the run, on the same storage: checkpoints and all
#   16xh100                             planner config of this cluster; hosts x GPUs must be its world size
#   --nodes=2                           nodes
#   --nnodes 2                          the same number
#   --gpus-per-node=8                   GPUs of a node
#   /shared/hisac_rec/.venv/bin/python  interpreter of an environment with hisac_rec, on shared storage
#   --partition=gpu                     partition of the GPU nodes
#   --time=2-00:00:00                   longest run; when it is over the job saves, is queued again and goes on
#   --cpus-per-task=96                  processors of a node
#   --mem=1900000                       main memory of a node, MB
#   --nproc-per-node 8                  GPUs of a node
#
#SBATCH --job-name=hisac-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --mem=1900000
#SBATCH --partition=gpu
#SBATCH --time=2-00:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@300
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out

FIRST_HOST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export FIRST_HOST

# One task a node, all ended once one has failed. SIGTERM goes to the tasks, not to
# this script, which stays to queue the job again.
srun --kill-on-bad-exit=1 --wait=300 bash -c 'exec /shared/hisac_rec/.venv/bin/python -m torch.distributed.run --nnodes 2 --node-rank $SLURM_NODEID --master-addr ${FIRST_HOST:=localhost} --master-port 29500 --nproc-per-node 8 --shutdown-timeout 240 --max-restarts 0 --tee 3 --role '"'"''"'"' -m hisac_rec train hisac /shared/data/shop --out /shared/runs/shop --planner 16xh100 $(test -f /shared/runs/shop/config.toml && echo --resume)'
code=$?
if [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 10 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
