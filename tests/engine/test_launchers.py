"""The variables by which launchers tell a rank its place, and what is said of wrong ones."""

from __future__ import annotations

import socket

import psutil
import pytest

from harl_fast.engine.launchers import check_choices, first_host, interface_to, note_place
from harl_fast.engine.machine import this_machine
from harl_fast.errors import ConfigError


def test_without_a_launcher_the_process_is_the_only_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE"):
        monkeypatch.setenv(name, "x")  # so that the test's end restores what was there
        monkeypatch.delenv(name)
    here = this_machine()
    assert (here.rank, here.ranks, here.ranks_here) == (0, 1, 1)
    assert this_machine() == here  # what it set reads back


def test_torchruns_variables_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_SIZE", "x")
    monkeypatch.delenv("LOCAL_SIZE")
    values = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    values |= {"MASTER_ADDR": "a", "MASTER_PORT": "29500"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    here = this_machine()
    assert (here.rank, here.local_rank, here.ranks, here.ranks_here) == (5, 1, 8, 4)


VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "3(x2),1",
    "SLURM_STEP_NODELIST": "gpu[03-04,17]",
    "SLURM_PROCID": "4",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
MPIRUN = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (SRUN, ["4", "7", "1", "3", "gpu03", "21102"]),
        (SRUN | {"MASTER_ADDR": "10.0.0.1"}, ["4", "7", "1", "3", "10.0.0.1", "21102"]),
        (MPIRUN, ["3", "4", "3", "4", "127.0.0.1", "29500"]),
        # deepspeed or torchrun within a step of Slurm's
        (
            SRUN | dict(zip(VARIABLES, "1202a9", strict=True)),
            list("1202a9"),
        ),
    ],
)
def test_other_launchers_variables_are_understood(
    given: dict[str, str], expected: list[str]
) -> None:
    env = dict(given)
    note_place(env)
    assert [env[name] for name in VARIABLES] == expected


@pytest.mark.parametrize(
    "given",
    [
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8"},  # a batch script
        SRUN | {"SLURM_STEP_NUM_TASKS": "1"},
        {"PMI_SIZE": "1"},
    ],
)
def test_one_process_under_a_launcher_is_the_only_rank(given: dict[str, str]) -> None:
    env = dict(given)
    note_place(env)
    assert [env[name] for name in VARIABLES[:4]] == ["0", "1", "0", "1"]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"PMI_SIZE": "4", "PMI_RANK": "1"}, "MPI started 4 processes"),
        ({"MV2_COMM_WORLD_SIZE": "2"}, "MVAPICH started 2 processes"),
        (SRUN | {"SLURM_LOCALID": ""}, "did not set SLURM_LOCALID"),
        (SRUN | {"SLURM_NODEID": "3"}, "says nothing of node 3"),
        (MPIRUN | {"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}, "-x MASTER_ADDR="),
        (SRUN | {"SLURM_NODEID": "x"}, "SLURM_NODEID is 'x'"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, "LOCAL_RANK, LOCAL_SIZE, MASTER_ADDR, MASTER_PORT not"),
        (
            {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
            | {"MASTER_ADDR": "a"},
            "are set, MASTER_PORT not",
        ),
    ],
)
def test_processes_that_would_take_themselves_for_the_only_ones_are_refused(
    given: dict[str, str], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        note_place(dict(given))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("node7", "node7"),
        ("node7,node8", "node7"),
        ("n[001-128]", "n001"),
        ("r[2,4]-c[1-9],z", "r2-c1"),
    ],
)
def test_slurms_list_of_hosts_begins_with_rank_0s(text: str, name: str) -> None:
    assert first_host(text) == name


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"])
@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "9" * 5000, "\x1b"])
def test_a_launchers_variable_that_is_no_number_is_named(
    name: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"):
        monkeypatch.setenv(key, "1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("MASTER_ADDR", "a")
    monkeypatch.setenv(name, text)
    with pytest.raises(ConfigError, match=f"variable {name} is .*torchrun") as caught:
        this_machine()
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("RANK", "2", "RANK 2 of WORLD_SIZE 2"),
        ("LOCAL_RANK", "7", "LOCAL_RANK 7 of LOCAL_SIZE 2"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0'"),
        ("MASTER_PORT", "abc", "MASTER_PORT is 'abc'"),
        ("MASTER_PORT", "65536", "MASTER_PORT is '65536'"),
    ],
)
def test_variables_that_name_no_rank_or_port_are_named(
    name: str, text: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}
    known |= {"MASTER_PORT": "29500", "MASTER_ADDR": "a"}
    for key, value in {**known, name: text}.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=words):
        this_machine()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"GLOO_SOCKET_IFNAME": "lo,nope0"}, "'nope0', no network interface .*: set one of .*lo"),
        ({"DS_ACCELERATOR": "cuda"}, "'cuda', and the ranks compute on cpu"),
    ],
)
def test_variables_that_name_no_interface_or_device_of_this_machine_are_named(
    given: dict[str, str], told: str
) -> None:
    check_choices({"GLOO_SOCKET_IFNAME": "lo", "DS_ACCELERATOR": "cpu"}, device="cpu")
    check_choices({"GLOO_SOCKET_IFNAME": ""}, device="cuda")
    with pytest.raises(ConfigError, match=told):
        check_choices(given, device="cpu")


def test_the_interface_is_that_of_the_way_to_the_first_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert psutil.net_if_addrs()[interface_to("127.0.0.1")][0].address == "127.0.0.1"
    own = [
        (name, each.address)
        for name, addresses in psutil.net_if_addrs().items()
        for each in addresses
        if each.family == socket.AF_INET and psutil.net_if_stats()[name].isup
    ]
    for name, address in own:
        assert interface_to(address) == name
    loopback = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", ("127.0.1.1", 9))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *args, **kwargs: loopback)
    with pytest.raises(ConfigError, match=r"node1', which means 127\..*see /etc/hosts"):
        interface_to("node1")


def test_a_name_that_nobody_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", unknown)
    with pytest.raises(ConfigError, match=r"node7', to which .* \(Name or service not known\)"):
        interface_to("node7")
