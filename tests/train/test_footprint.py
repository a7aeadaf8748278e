"""What a step takes besides tables, on the machine that is planned for."""

from __future__ import annotations

import torch
from training import small_config

from hisac_rec.data.contract import PreparedData
from hisac_rec.ops.loops import suit_loops
from hisac_rec.train.footprint import measure
from hisac_rec.train.job import open_job


def test_a_gpu_is_planned_with_what_its_own_operators_keep(small_data: PreparedData) -> None:
    """It runs no loops; measured on a CPU all the same, which does again afterwards."""
    job = open_job(small_config(), small_data)
    of_cpu, of_gpu = measure(job, "cpu"), measure(job, "cuda")
    assert of_gpu.candidate[1] > of_cpu.candidate[1]
    assert of_gpu.event[0] == of_cpu.event[0]  # a batch is a batch
    assert suit_loops(torch.zeros(1))
