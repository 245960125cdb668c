"""Launchers' variables that tell a process its rank, translated into those that torch reads."""

from __future__ import annotations

import re
import socket
from collections.abc import MutableMapping
from ipaddress import ip_address

import psutil

from harl_fast.errors import ConfigError, few, shown

Variables = MutableMapping[str, str]

_TOO_MANY = {"PMI_SIZE": "MPI", "MV2_COMM_WORLD_SIZE": "MVAPICH"}
"""Counts of processes by launchers that do not tell all that is needed."""
INTERFACE = "GLOO_SOCKET_IFNAME"
"""Environment variable that names the network interface by which CPUs talk."""
_LOWEST_PORT, _PORTS = 20_000, 10_000
"""Below those that Linux gives to programs that ask for any."""


def note_place(env: Variables) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, MASTER_ADDR and MASTER_PORT where they lack.

    `deepspeed` and `torchrun` set all that are needed. Slurm's srun and Open MPI's mpirun have
    variables of their own; there MASTER_ADDR and MASTER_PORT count if they are set. A process
    without a launcher becomes the only rank. Raises ConfigError under any other launcher that
    started several: each would take itself for the only one, all in one run folder.
    """
    if "RANK" not in env:
        if _number(env, "SLURM_STEP_NUM_TASKS") > 1:  # a batch script itself has none
            _from_slurm(env)
        elif _number(env, "OMPI_COMM_WORLD_SIZE") > 1:
            _from_open_mpi(env)
        else:
            _refuse_others(env)
            env.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1")
            env.update(LOCAL_SIZE="1")
    if env.setdefault("WORLD_SIZE", "1") == "1" and "TORCHELASTIC_RUN_ID" not in env:
        # No other rank looks for the port, so two jobs of one rank need not share the launcher's
        # default. torchrun itself listens on its own.
        env["MASTER_PORT"] = str(_free_port())
    if "LOCAL_WORLD_SIZE" in env:
        env.setdefault("LOCAL_SIZE", env["LOCAL_WORLD_SIZE"])
    needed = ("LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in needed if name not in env]
    if missing and env["WORLD_SIZE"] != "1":
        raise ConfigError(
            f"RANK and WORLD_SIZE are set, {', '.join(missing)} not: which device is this "
            f"rank's, how many share this machine, and where do all meet? Set "
            f"{', '.join(needed)} too, or start with `deepspeed` or `torchrun`"
        )
    for name, alone in (("LOCAL_RANK", "0"), ("LOCAL_SIZE", "1")):
        env.setdefault(name, alone)


def _from_slurm(env: Variables) -> None:
    ours = ("PROCID", "STEP_NUM_TASKS", "LOCALID", "NODEID", "STEP_TASKS_PER_NODE", "STEP_NODELIST")
    values = _all_of(env, [f"SLURM_{name}" for name in ours], launcher="srun")
    rank, ranks, local_rank, node, per_node, nodes = values
    env.update(RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK=local_rank)
    if not (node.isascii() and node.isdecimal()):
        raise ConfigError(
            f"SLURM_NODEID is {shown(node)}, no number: start with `deepspeed` or `torchrun`"
        )
    env["LOCAL_SIZE"] = str(tasks_of_node(per_node, int(node[:12])))
    env.setdefault("MASTER_ADDR", first_host(nodes))
    job = 100 * _number(env, "SLURM_JOB_ID") + _number(env, "SLURM_STEP_ID")
    env.setdefault("MASTER_PORT", str(_LOWEST_PORT + job % _PORTS))


def _from_open_mpi(env: Variables) -> None:
    ours = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    values = _all_of(env, [f"OMPI_COMM_WORLD_{name}" for name in ours], launcher="mpirun")
    rank, ranks, local_rank, here = values
    if ranks != here and "MASTER_ADDR" not in env:
        raise ConfigError(
            "mpirun started processes on several machines, which cannot know where to meet: add "
            "-x MASTER_ADDR=<address of the first machine>"
        )
    env.update(RANK=rank, WORLD_SIZE=ranks, LOCAL_RANK=local_rank, LOCAL_SIZE=here)
    env.setdefault("MASTER_ADDR", "127.0.0.1")
    env.setdefault("MASTER_PORT", "29500")


def _refuse_others(env: Variables) -> None:
    for name, launcher in _TOO_MANY.items():
        if _number(env, name) > 1:
            raise ConfigError(
                f"{launcher} started {env[name]} processes, and its variables do not say which "
                f"rank of which machine each is: start with `deepspeed`, `torchrun`, Slurm's srun "
                f"or Open MPI's mpirun; or set RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_SIZE, "
                f"MASTER_ADDR and MASTER_PORT"
            )


def _all_of(env: Variables, names: list[str], *, launcher: str) -> list[str]:
    missing = [name for name in names if not env.get(name)]
    if missing:
        raise ConfigError(
            f"{launcher} started several processes and did not set {', '.join(missing)}: start "
            f"with `deepspeed` or `torchrun`"
        )
    return [env[name] for name in names]


def tasks_of_node(text: str, node: int) -> int:
    """Return how many tasks Slurm runs on a node. text: as 2(x3),1. Raises ConfigError."""
    counts: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,6})(?:\(x(\d{1,6})\))?", part)
        if not found:
            break
        counts += [int(found[1])] * int(found[2] or 1)
    if not 0 <= node < len(counts):
        raise ConfigError(
            f"SLURM_STEP_TASKS_PER_NODE is {text!r:.60}, which says nothing of node {node}: start "
            f"with `deepspeed` or `torchrun`"
        )
    return counts[node]


def first_host(text: str) -> str:
    """Return the first name of a list of hosts as Slurm writes it, as gpu[03-05,9],other."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", text)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else text)


def check_choices(env: Variables, *, device: str) -> None:
    """Raise ConfigError for variables by which libraries would use what is not here.

    device: "cuda" or "cpu", which the ranks compute on.
    """
    known = psutil.net_if_addrs()
    asked = env.get(INTERFACE, "").split(",")
    if unknown := [name for name in asked if name and name not in known]:
        raise ConfigError(
            f"the environment variable {INTERFACE} names {shown(unknown[0])}, no network interface "
            f"of this machine: set one of {few(list(known))}, or unset it"
        )
    if (name := env.get("DS_ACCELERATOR", device)) != device:
        raise ConfigError(
            f"the environment variable DS_ACCELERATOR is {shown(name)}, and the ranks compute on "
            f"{device} here: set {device}, or unset it"
        )


def interface_to(host: str) -> str:
    """Return the name of the network interface by which this machine reaches a host, or is it.

    Raises ConfigError if there is none, or if a name means no more than the loopback: whoever is on
    another machine cannot come back by that.
    """
    remedy = f"set MASTER_ADDR to the address of the first machine, or {INTERFACE} on each"
    try:
        kind, *_, place = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing
            own = probe.getsockname()[0]
    except OSError as error:
        raise ConfigError(
            f"the ranks are to meet at MASTER_ADDR {shown(host)}, to which this machine has no way "
            f"({error.strerror}): {remedy}"
        ) from error
    if ip_address(own).is_loopback and host != "localhost" and not _is_address(host):
        raise ConfigError(
            f"the ranks are to meet at MASTER_ADDR {shown(host)}, which means {own} here, this "
            f"machine itself and nothing to another one (see /etc/hosts): {remedy}"
        )
    name: str
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address == own for each in addresses):
            return name
    raise ConfigError(f"no network interface of this machine has its address {own}: {remedy}")


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _number(env: Variables, name: str) -> int:
    """Return a variable's number, 0 where it holds none."""
    text = env.get(name, "")
    return int(text[:12]) if text.isascii() and text.isdecimal() else 0


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
