"""Machines whose compilers run anywhere, and what their makers say of them."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from fnn.core import errors


class Machine(NamedTuple):
    """One device of a kind, by its maker's figures; bytes, and seconds.

    - `platform`: "tpu" or "cuda".
    - `memory`: what a program may use: of a TPU, by its compiler; of a GPU, all there is.
    - `memory_bandwidth`: of that memory.
    - `flops`: dense products of bfloat16, a second.
    - `link`: what one device sends at once by all its links: of a TPU within the slice, of a GPU
      within the host.
    - `network`: what one device sends at once to other hosts; None where links reach all devices.
    - `host`: the number of devices in one host.
    - `source`: of these figures.
    - `target`: the device, as XLA's compiler for GPUs is told; "" for TPUs.
    """

    name: str
    platform: str
    memory: int
    memory_bandwidth: float
    flops: float
    link: float
    network: float | None
    host: int
    source: str
    target: str = ""


class Topology(NamedTuple):
    """Devices of one machine: `shape` is the text by which their compiler knows them."""

    machine: Machine
    shape: str
    devices: int

    def __str__(self) -> str:
        return f"{self.devices} x {self.machine.name}"


_CLOUD = "cloud.google.com/tpu/docs"
_SPECS = "openxla/xla, xla/backends/gpu/target_config/specs"


def _target(name: str, capability: tuple[int, int], **figures: float) -> str:
    """A GPU in the words of XLA's `GpuTargetConfigProto`."""
    same = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "shared_memory_per_block": 49152,
        "threads_per_core_limit": 2048, "block_dim_limit_x": 2**31 - 1, "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535, "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
    }  # fmt: skip
    numbers = " ".join(f"{key}: {value}" for key, value in (same | figures).items())
    version = "cuda_compute_capability {{ major: {} minor: {} }}".format(*capability)
    return (
        f"gpu_device_info {{ {numbers} {version} }} "
        f'platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 1 patch: 0 }} '
        f'device_description_str: "{name}"'
    )


def _hopper(name: str, memory: int, memory_bandwidth: int) -> str:
    return _target(
        name, (9, 0), shared_memory_per_core=233472, shared_memory_per_block_optin=232448,
        core_count=132, fpus_per_core=128, memory_bandwidth=memory_bandwidth,
        l2_cache_size=52428800, clock_rate_ghz=1.98, device_memory_size=memory,
    )  # fmt: skip


_A100 = _target(
    "NVIDIA A100-SXM4-80GB", (8, 0), shared_memory_per_core=167936,
    shared_memory_per_block_optin=166912, core_count=108, fpus_per_core=64,
    memory_bandwidth=2039040000000, l2_cache_size=41943040, clock_rate_ghz=1.41,
    device_memory_size=85100068864,
)  # fmt: skip

# Left out is v4, of which the compiler alone sees two devices a chip where a program sees one.
MACHINES = {
    machine.name: machine
    for machine in (
        Machine("v5e", "tpu", int(15.75 * 2**30), 819e9, 197e12, 200e9, None, 8, f"{_CLOUD}/v5e"),
        Machine("v5p", "tpu", int(95.74 * 2**30), 2765e9, 459e12, 600e9, None, 4, f"{_CLOUD}/v5p"),
        Machine("v6e", "tpu", int(31.25 * 2**30), 1638e9, 918e12, 400e9, None, 8, f"{_CLOUD}/v6e"),
        Machine(
            "a100", "cuda", 85100068864, 2039e9, 312e12, 300e9, 25e9, 8,
            f"NVIDIA's data sheets of the A100 80GB SXM and the DGX A100; {_SPECS}", _A100,
        ),
        Machine(
            "h100", "cuda", 84942979072, 3352e9, 989e12, 450e9, 50e9, 8,
            f"NVIDIA's data sheets of the H100 SXM and the DGX H100; {_SPECS}",
            _hopper("NVIDIA H100 80GB HBM3", 84942979072, 3352320000000),
        ),
        Machine(
            "h200", "cuda", 151397597184, 4800e9, 989e12, 450e9, 50e9, 8,
            f"NVIDIA's data sheets of the H200 SXM and the DGX H200; {_SPECS}",
            _hopper("NVIDIA H200 141GB HBM3e", 151397597184, 4800000000000),
        ),
    )
}  # fmt: skip


def topology(on: str) -> Topology:
    """The devices that a text names: "v5e:2x4", chips of a TPU slice; "h100:16", GPUs in all.

    GPUs are in hosts of eight; "h100:1x4x2" is one slice of four hosts of two.

    >>> topology("v5p:4x4x4").devices, topology("h100:64").shape
    (64, '1x8x8')
    """
    name, _, shape = on.partition(":") if isinstance(on, str) else ("", "", "")
    machine = MACHINES.get(name)
    if machine is None or not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
        raise errors.OptionError(
            f"a machine and its devices, of {', '.join(MACHINES)}",
            errors.show(on),
            'write on="v5e:2x4", chips of a TPU slice, or on="h100:8", GPUs',
        )
    sizes = [int(size) for size in shape.split("x")]
    devices = math.prod(sizes)
    if machine.platform == "cuda" and len(sizes) == 1:
        host = min(devices, machine.host)
        if devices % host:
            raise errors.OptionError(
                f"a multiple of {host} devices, or fewer", shape, f'write on="{name}:1xHOSTSxGPUS"'
            )
        shape = f"1x{devices // host}x{host}"
    elif len(sizes) != (3 if name in ("v5p", "h100", "h200", "a100") else 2):
        mend = (
            'on="h100:1x2x8" is slices, hosts and GPUs; on="v5p:2x2x1" and on="v5e:2x4" are chips'
        )
        raise errors.OptionError(f"devices as {name} has them", shape, mend)
    return Topology(machine, shape, devices)
