"""``[topology]`` of a planner config: the machines, and how ranks are grouped."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from hisac_rec.config import Strict

Device = Literal["cpu", "cuda"]


class OtherHosts(Strict):
    """``[[topology.other_hosts]]``: machines whose memory is not that of the rest."""

    hosts: list[NonNegativeInt]
    """Which machines, counted from 0; machine h holds the ranks from h * devices_per_host on."""
    hbm_gib: PositiveFloat | None = None
    """Memory of one of their GPUs, GiB. Left out: as ``topology.hbm_gib`` says."""
    ddr_gib: PositiveFloat | None = None
    """Their main memory, GiB. Left out: as ``topology.ddr_gib`` says."""


class TopologyConfig(Strict):
    """``[topology]``: the machines. The world size is ``hosts * devices_per_host``."""

    hosts: PositiveInt = 1
    """Machines."""
    devices_per_host: PositiveInt = 1
    """Ranks on each machine: GPUs, or processes where ``device`` is cpu."""
    device: Device = "cuda"
    """Where tables are looked up: "cpu" or "cuda"."""
    hbm_gib: Annotated[float, Field(ge=0)] = 0.0
    """Memory of one GPU, GiB, as ``torch.cuda`` reports it; 0 on cpu."""
    ddr_gib: PositiveFloat = 128.0
    """Main memory of one machine, GiB; its ranks share it evenly."""
    other_hosts: list[OtherHosts] = []
    """Machines with more or less memory than the rest. Row-wise shards stay equal, so the least
    memory bounds them; other shards go where there is room."""
    sharding_group: PositiveInt | None = None
    """Ranks that tables are sharded over. Every group of so many consecutive ranks holds all
    tables, and looks up within the group alone. Left out: one group of all ranks."""
    sync_every: PositiveInt = 1
    """Steps after which the groups' tables and optimiser state are averaged."""
    intra_host_bandwidth: PositiveFloat = 600.0
    """Between two devices of one machine, GB/s, one direction."""
    inter_host_bandwidth: PositiveFloat = 12.5
    """Between two machines, GB/s per device, one direction."""
    hbm_bandwidth: PositiveFloat = 2000.0
    """GPU memory, GB/s."""
    ddr_bandwidth: PositiveFloat = 50.0
    """Main memory, GB/s per rank."""
    host_to_device_bandwidth: PositiveFloat = 32.0
    """Main memory to one GPU, GB/s, one direction: what ``fused_uvm`` kernels pay."""

    @model_validator(mode="after")
    def _device_has_memory(self) -> TopologyConfig:
        if self.device == "cuda" and self.hbm_gib <= 0:
            raise ValueError("hbm_gib is required where device = 'cuda' (GiB of one GPU)")
        if self.device == "cpu" and self.hbm_gib > 0:
            raise ValueError("hbm_gib must be left out where device = 'cpu'")
        return self

    @model_validator(mode="after")
    def _other_hosts_exist(self) -> TopologyConfig:
        named = [host for other in self.other_hosts for host in other.hosts]
        for host in named:
            if host >= self.hosts:
                raise ValueError(
                    f"other_hosts names host {host}; there are hosts 0 to {self.hosts - 1}"
                )
            if named.count(host) > 1:
                raise ValueError(f"other_hosts names host {host} more than once")
        if self.device == "cpu" and any(other.hbm_gib for other in self.other_hosts):
            raise ValueError("other_hosts.hbm_gib must be left out where device = 'cpu'")
        return self

    @model_validator(mode="after")
    def _groups_are_whole(self) -> TopologyConfig:
        group, each = self.sharding_group, self.devices_per_host
        if group is None:
            if self.sync_every != 1:
                raise ValueError("sync_every is of use only with a sharding_group")
            return self
        if not self._divides(group):
            valid = [n for n in range(1, self.world_size + 1) if self._divides(n)]
            nearest = min(valid, key=lambda n: abs(n - group))
            raise ValueError(
                f"sharding_group = {group}: groups must be equal, of whole hosts or equal parts of "
                f"one; with {self.hosts} x {each} ranks the nearest is {nearest}"
            )
        if self.other_hosts:
            raise ValueError("sharding_group needs hosts of equal memory: leave out other_hosts")
        return self

    def _divides(self, group: int) -> bool:
        each = self.devices_per_host
        return self.world_size % group == 0 and (each % group == 0 or group % each == 0)

    @property
    def group_size(self) -> int:
        """Ranks that tables are sharded over."""
        return self.sharding_group or self.world_size

    @property
    def replicas(self) -> int:
        """Groups, each of which holds all tables."""
        return self.world_size // self.group_size

    @property
    def group_devices_per_host(self) -> int:
        """Ranks of a group on one of its hosts."""
        return min(self.group_size, self.devices_per_host)

    @property
    def world_size(self) -> int:
        """Ranks of the job."""
        return self.hosts * self.devices_per_host

    def memory_gib(self, rank: int) -> tuple[float, float]:
        """GiB of (its device's memory, its share of main memory) of a rank."""
        hbm, ddr = self.hbm_gib, self.ddr_gib
        for other in self.other_hosts:
            if rank // self.devices_per_host in other.hosts:
                hbm, ddr = other.hbm_gib or hbm, other.ddr_gib or ddr
        return hbm, ddr / self.devices_per_host
