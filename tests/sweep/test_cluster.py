"""The same sweep on a real dask.distributed cluster: a scheduler and two workers, on loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest

from paravirt_mm.errors import SpecError
from paravirt_mm.sweep.cluster import connect, describe, differences

from .fixtures import FAST, Sweep, command, content, wait_for_chunks

needs_dask = pytest.mark.skipif(
    find_spec("distributed") is None, reason="needs the extra 'cluster'"
)

SWEEP = ("--generate", 60, "--seed", 5, "--chunk", 2, *FAST)


class Cluster:
    """Processes that are ended by their own ids."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self._log = (folder / "cluster.log").open("wb")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{port}"
        self.start("scheduler", "--port", str(port), "--no-dashboard", "--no-jupyter")

    def start(self, role: str, *arguments: str, path: Path | None = None) -> None:
        env = {**os.environ, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "3"}
        if path is not None:
            env["PYTHONPATH"] = str(path)
        self.processes.append(
            subprocess.Popen(
                [sys.executable, "-m", "dask", role, "--host", "127.0.0.1", *arguments],
                stdout=self._log, stderr=self._log, cwd=self._folder, env=env,
            )
        )  # fmt: skip

    def worker(self, path: Path | None = None) -> None:
        """Add a worker of one thread, without the nanny that would start it again."""
        self.start(
            "worker", self.address, "--no-nanny", "--nthreads", "1", "--no-dashboard", path=path
        )

    def wait(self, workers: int) -> None:
        from distributed import Client

        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
        for process in self.processes:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    try:
        yield made
    finally:
        made.stop()


@needs_dask
@pytest.mark.slow
def test_a_worker_dies_in_mid_sweep(tmp_path: Path, cluster: Cluster, sweep: Sweep) -> None:
    """SIGKILL for one of two workers: dask repeats its chunks elsewhere, the result is the same."""
    cluster.worker()
    cluster.worker()
    cluster.wait(2)
    local, remote = tmp_path / "local", tmp_path / "remote"
    process = subprocess.Popen(
        command("sweep", *SWEEP, "-o", remote, "--scheduler", cluster.address)
    )
    wait_for_chunks(remote, process)
    os.kill(cluster.processes[-1].pid, signal.SIGKILL)
    assert cluster.processes[-1].wait() == -signal.SIGKILL
    assert process.wait(120) in (0, 1)
    sweep(*SWEEP, "-o", local, "-j", 2)
    assert content(remote) == content(local)


@needs_dask
@pytest.mark.slow
def test_plugin_missing_on_a_worker(
    tmp_path: Path, cluster: Cluster, sweep: Sweep, distribution: Callable[[str, str], Path]
) -> None:
    """It is said before work starts: nothing is stored."""
    plugins = distribution(
        """
        import attrs
        from paravirt_mm import hookimpl

        @attrs.frozen
        class Odd:
            pvmm_api = 1

            @hookimpl
            def pvmm_figures(self, run):
                return {"odd": 1}
        """,
        "odd = odd_plugins:Odd\n",
    )
    cluster.worker(plugins)
    cluster.worker()
    cluster.wait(2)
    out = tmp_path / "out"
    result = sweep(*SWEEP, "-o", out, "--scheduler", cluster.address, plugins=plugins)
    assert result.returncode == 2
    assert "lacks plugin odd (odd-plugins 1.0)" in result.stderr
    assert result.stderr.count("lacks plugin") == 1
    assert not out.exists()


@needs_dask
@pytest.mark.slow
def test_no_scheduler_no_workers(tmp_path: Path, cluster: Cluster, sweep: Sweep) -> None:
    time.sleep(2)
    result = sweep(*SWEEP, "-o", tmp_path / "out", "--scheduler", cluster.address)
    assert (result.returncode, "has no workers" in result.stderr) == (2, True)


def test_paths_that_a_host_does_not_see_are_told(tmp_path: Path) -> None:
    missing = str(tmp_path / "none")
    assert describe([str(tmp_path), missing])["missing"] == [missing]


def test_differences_are_told() -> None:
    """Version, plugin, version of a plugin, one plugin too many, a folder not mounted there."""
    here = describe()
    assert list(differences(here, json.loads(json.dumps(here)))) == []
    there = describe(["/no/such/folder"])
    there["core"] = "0.0.1"
    there["plugins"] = {**there["plugins"], "xen": "paravirt-mm 0.0.1", "extra": "extra 1"}
    del there["plugins"]["native"]
    there["broken"] = {"native": "it does not load"}
    found = "\n".join(differences(here, there))
    assert found.splitlines()[0].startswith("has paravirt-mm 0.0.1, not ")
    assert "lacks plugin native" in found
    assert "it does not load" in found
    assert "has plugin xen of paravirt-mm 0.0.1" in found
    assert "a plugin extra (extra 1) that is not installed here" in found
    assert found.splitlines()[-1] == "does not see /no/such/folder"


class Dask:
    """Stands for the module ``distributed``, and for its client."""

    def __init__(self, answers: Mapping[str, object], address: str = "tcp://there:1") -> None:
        self.answers, self.address = answers, address
        self.open = False

    def Client(self, address: str, **given: object) -> Dask:  # noqa: N802  # dask's name
        assert given == {"timeout": 20, "set_as_default": False}
        if address != self.address:
            raise OSError("refused")
        return self

    def __enter__(self) -> Dask:
        self.open = True
        return self

    def __exit__(self, *_: object) -> None:
        self.open = False

    def nthreads(self) -> dict[str, int]:
        return dict.fromkeys(self.answers, 3)

    def run(self, function: object, paths: list[str], on_error: str) -> Mapping[str, object]:
        assert function is describe
        assert on_error == "return"
        assert all(Path(path).is_absolute() for path in paths)
        return self.answers

    def get_executor(self, pure: bool) -> str:
        assert not pure
        return "executor"


def test_every_worker_is_asked_before_work_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def dask(answers: Mapping[str, object]) -> Dask:
        made = Dask(answers)
        monkeypatch.setitem(sys.modules, "distributed", made)
        return made

    good = dask({"tcp://a": describe(), "tcp://b": describe()})
    with connect("tcp://there:1", ["in.log"]) as (executor, width):
        assert (str(executor), width, good.open) == ("executor", 6, True)
    assert not good.open
    with pytest.raises(SpecError, match="answers at tcp://x: refused"), connect("tcp://x", []):
        pass
    dask({})
    with pytest.raises(SpecError, match="has no workers"), connect("tcp://there:1", []):
        pass
    dask({"tcp://b": describe(["/no"]), "tcp://a": ValueError("odd"), "tcp://c": describe()})
    with pytest.raises(SpecError) as caught, connect("tcp://there:1", []):
        pass
    assert str(caught.value).splitlines()[1:] == [
        "  tcp://a cannot load paravirt-mm: odd", "  tcp://b does not see /no",
    ]  # fmt: skip
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SpecError, match="dask"), connect("tcp://there:1", []):
        pass
