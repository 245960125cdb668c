"""From a machine and a configuration to hours: each resource's rate, of which the least decides."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import torch

from harl_fast.config import RunConfig
from harl_fast.data.container.stores import parse_store
from harl_fast.data.views.crop import ViewGeometry
from harl_fast.engine.views import loader_colours, size_phases, view_geometry, views_at
from harl_fast.errors import ConfigError
from harl_fast.host import CACHE_SHARE
from harl_fast.plan import loader, memory, network, step
from harl_fast.plan.hardware import CASES, GB, MEGA, Case, Gpu, hardware
from harl_fast.plan.work import Work, pretraining_work

Sizes = tuple[int, ...]
"""Sides of an image's views in pixels."""
Span = tuple[float, float, float]
"""Likely, slow and fast."""
COMPUTE, NETWORK, CORES, STORE = "compute", "network", "loader cores", "store bandwidth"


@dataclass(frozen=True)
class Measured:
    """What was measured on the machine at hand, instead of assumed."""

    where: str
    loader_us: dict[Sizes, Span] = field(default_factory=dict)
    """Microseconds of one core among others, per image."""
    step_s: Span | None = None
    """Seconds per image of networks and optimizer."""
    step_flops: float = 0.0
    """FLOP per image of that."""
    gpu: str = ""
    """Of the requests that it stands for."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be planned. Cores, memory and GPUs are those of each machine."""

    config: RunConfig
    name: str = "paper"
    """Of the configuration."""
    gpus: int = 8
    gpu: str = "A100-80GB"
    """A name of the table; empty: the processor at hand trains, as measured."""
    cores: int = 128
    ram_bytes: float = 1e12
    images: int = 1_281_167
    batch: int = 4096
    store: str = "jpg"
    megapixels: float
    """Of a stored image."""
    image_bytes: float = 0.0
    """Of a stored image; 0: by its store and pixels."""
    disk_bytes_s: float
    """Of each machine."""
    nodes: int = 1
    network_bytes_s: float = math.inf
    precision: str = "bf16"
    price: float | None = None
    """Of a GPU and hour."""
    measured: Measured | None = None

    @property
    def device(self) -> torch.device:
        """What kind of device trains."""
        return torch.device("cuda" if self.gpu else "cpu")

    @property
    def half(self) -> bool:
        """Whether networks run in 16 bits."""
        return self.precision != "fp32"

    @property
    def ranks(self) -> int:
        """GPUs of all machines."""
        return self.gpus * self.nodes

    @property
    def total_images(self) -> int:
        """Images of all epochs, without the incomplete last batch of each."""
        return self.images // self.batch * self.batch * self.config.epochs

    def sizes(self, epoch: int) -> Sizes:
        """Return the sides of an epoch's views."""
        return tuple(view.size_px for view in views_at(self.config, epoch=epoch))

    def check(self) -> None:
        """Raise ConfigError for what cannot run."""
        if self.batch % self.ranks or self.batch < 2 * self.ranks:
            near = max(2, round(self.batch / self.ranks)) * self.ranks
            raise ConfigError(
                f"--batch {self.batch} cannot be divided among {self.ranks} GPUs, 2 images or more "
                f"each: use --batch {near}"
            )
        if self.batch > self.images:
            most = self.images // self.ranks * self.ranks
            fits = f"use --batch {most} or less" if most >= 2 * self.ranks else "take fewer GPUs"
            raise ConfigError(
                f"--batch {self.batch} is above the {self.images} images, so an epoch has no "
                f"whole batch: {fits}, or give more --images"
            )
        if self.nodes > 1 and math.isinf(self.network_bytes_s):
            raise ConfigError(f"--nodes {self.nodes} needs --network, such as --network 100Gb")
        if self.gpu and self.precision == "bf16" and not hardware().gpus[self.gpu].bf16:
            raise ConfigError(f"{self.gpu} has no bfloat16: use --precision fp16")


@dataclass(frozen=True)
class Phase:
    """Epochs whose views have the same sizes."""

    sizes: Sizes
    epochs: int
    parts: dict[str, float]
    """Seconds of a step by what they go to."""
    rates: dict[str, float]
    """Images per second of each resource, were the others free."""
    cores_needed: float
    """Of each machine, to keep its GPUs busy."""

    @property
    def rate(self) -> float:
        """Images per second."""
        both = 1 / (1 / self.rates[COMPUTE] + 1 / self.rates[NETWORK])
        return min(both, self.rates[CORES], self.rates[STORE])

    @property
    def binding(self) -> str:
        """The resource that decides."""
        for name in (CORES, STORE):
            if self.rates[name] == self.rate:
                return name
        return NETWORK if self.rates[NETWORK] < self.rates[COMPUTE] else COMPUTE


@dataclass(frozen=True)
class Plan:
    """What a request comes to."""

    request: Request
    phases: dict[Case, list[Phase]]
    micro: int
    """Images of a GPU at once; 0: not even two fit."""
    memory_bytes: float
    """Peak of a GPU with that, or with two."""
    store_bytes: float
    in_ram: bool

    def hours(self, case: Case = "likely") -> float:
        """Return the hours of all epochs."""
        each = self.request.total_images / self.request.config.epochs
        return sum(phase.epochs * each / phase.rate for phase in self.phases[case]) / 3600

    @property
    def rate(self) -> float:
        """Mean images per second."""
        return self.request.total_images / self.hours() / 3600

    @property
    def longest(self) -> Phase:
        """The phase that takes most of the time."""
        return max(self.phases["likely"], key=lambda phase: phase.epochs / phase.rate)

    @property
    def energy_kwh(self) -> float:
        """Energy at the machines' greatest power; 0 where that is unknown."""
        gpu = hardware().gpus.get(self.request.gpu)
        return self.hours() * self.request.ranks * gpu.system_w.value / 1e3 if gpu else 0.0

    @property
    def price(self) -> float | None:
        """Price of all GPU hours."""
        rate = self.request.price
        return None if rate is None else rate * self.hours() * self.request.ranks


def make_plan(request: Request) -> Plan:
    """Return the plan of a request. Raises ConfigError."""
    request.check()
    config = request.config
    starts, counts = dict[Sizes, int](), Counter[Sizes]()
    for start, count in size_phases(config).items():
        sizes = request.sizes(start)
        starts.setdefault(sizes, start)
        counts[sizes] += count
    works = {sizes: pretraining_work(config, sizes, half=request.half) for sizes in counts}
    image_bytes = request.image_bytes or loader.stored_bytes(
        parse_store(request.store), megapixels=request.megapixels
    )
    in_ram = image_bytes * request.images <= CACHE_SHARE * request.ram_bytes
    store_rate = math.inf if in_ram else request.nodes * request.disk_bytes_s / image_bytes
    phases: dict[Case, list[Phase]] = {case: [] for case in CASES}
    for case, found in phases.items():
        for sizes, count in counts.items():
            views = view_geometry(config, epoch=starts[sizes])
            parts, cost_us = _parts(request, sizes, works, case), _loader_us(request, views, case)
            found.append(_phase(request, sizes, count, parts, cost_us, store_rate))
    micro, needed = _memory(request, works)
    return Plan(request, phases, micro, needed, image_bytes * request.images, in_ram)


def sides_text(sizes: Sizes) -> str:
    """Return "224 px" or, of views of several sizes, "2 x 160 px and 4 x 96 px"."""
    counts = Counter(sizes)
    each = (f"{count} x {size} px" for size, count in counts.items())
    return " and ".join(each) if len(counts) > 1 else f"{sizes[0]} px"


def _phase(
    request: Request,
    sizes: Sizes,
    epochs: int,
    parts: dict[str, float],
    loader_us: float,
    store_rate: float,
) -> Phase:
    between = parts.get(NETWORK, 0.0)
    if not request.gpu:  # networks and loader take turns on the same cores
        parts["loader"] = request.batch * loader_us / MEGA / request.cores
    compute = request.batch / (sum(parts.values()) - between)
    spare = max(1, request.cores - request.gpus)  # a core per GPU launches its kernels
    rates = {
        COMPUTE: compute,
        NETWORK: request.batch / between if between else math.inf,
        CORES: request.nodes * spare * MEGA / loader_us if request.gpu else math.inf,
        STORE: store_rate,
    }
    return Phase(sizes, epochs, parts, rates, compute / request.nodes * loader_us / MEGA)


def _loader_us(request: Request, views: list[ViewGeometry], case: Case) -> float:
    """Return the microseconds of one core among others per image."""
    sizes, measured = tuple(view.size_px for view in views), request.measured
    if measured is not None and sizes in measured.loader_us:
        return measured.loader_us[sizes][CASES.index(case)]
    return loader.image_us(
        parse_store(request.store),
        views,
        megapixels=request.megapixels,
        coloured=loader_colours(request.config, request.device),
        case=case,
    )


def _parts(
    request: Request, sizes: Sizes, works: dict[Sizes, Work], case: Case
) -> dict[str, float]:
    """Return the seconds of a step by what they go to."""
    images, work, measured = request.batch // request.ranks, works[sizes], request.measured
    parts: dict[str, float] = {}
    if measured is not None and measured.step_s is not None and measured.gpu == request.gpu:
        # The law of the views: a network's time goes with its FLOP.
        seconds = measured.step_s[CASES.index(case)] * work.flops / measured.step_flops
        parts["networks and optimizer"] = images * seconds
        if not request.gpu:
            return parts
    gpu = hardware().gpus[request.gpu]
    if not parts:
        kernels = "compiled" if request.config.model.compile else "eager"
        synced = request.config.model.sync_bn == "all" and request.ranks > 1
        online, target = step.network_seconds(
            work, gpu, kernels, half=request.half, synced=synced, case=case
        )
        parts = {"online network": images * online, "target": images * target}
        parts |= step.update_seconds(work, gpu)
    on_device = not loader_colours(request.config, request.device)
    pixels = images * sum(size**2 for size in sizes)
    parts |= step.input_seconds(gpu, pixels=pixels, on_device=on_device)
    if request.ranks > 1:
        parts[NETWORK] = _reduction_seconds(request, gpu, work)
    return parts


def _reduction_seconds(request: Request, gpu: Gpu, work: Work) -> float:
    return network.allreduce_seconds(
        4.0 * work.parameters,  # float32
        gpus=request.gpus,
        nodes=request.nodes,
        bus_bytes_s=gpu.bus_gb_s.value * GB,
        network_bytes_s=request.network_bytes_s,
    )


def _memory(request: Request, works: dict[Sizes, Work]) -> tuple[int, float]:
    """Return the micro batch that fits, and the peak bytes of a GPU with it."""
    share = request.batch // request.ranks
    if not request.gpu:
        return share, 0.0
    sizes = max(works, key=lambda each: works[each].saved_bytes)
    on_device = not loader_colours(request.config, request.device)

    def needed(micro: int) -> float:
        pixels = micro * sum(size**2 for size in sizes)
        return memory.device_bytes(works[sizes], micro=micro, pixels=pixels, on_device=on_device)

    limit = hardware().gpus[request.gpu].memory_gb.value * GB
    fitting = (n for n in range(share, 1, -1) if share % n == 0 and needed(n) <= limit)
    micro = next(fitting, 0)
    return micro, needed(micro or 2)
