"""The same sweep on a dask.distributed cluster.

Everything that makes a cluster is dask's: what runs where, what is repeated when a worker dies, how
values travel. This module connects, asks every worker whether it could do the work, and hands out
dask's own `concurrent.futures` executor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from paravirt_mm._version import __version__
from paravirt_mm.errors import SpecError, install
from paravirt_mm.registry import default_registry

CONNECT_SECONDS = 20


def describe(paths: Sequence[str] = ()) -> dict[str, Any]:
    """Return what a host has: versions of core and plugins, and which of ``paths`` it sees not."""
    registry = default_registry()
    return {
        "core": __version__,
        "plugins": {plugin.name: plugin.origin for plugin in registry.plugins.values()},
        "broken": {broken.name: broken.problem for broken in registry.broken},
        "missing": [path for path in paths if not Path(path).exists()],
    }


def differences(here: Mapping[str, Any], there: Mapping[str, Any]) -> Iterator[str]:
    """Yield what keeps a worker from giving the same results as this process would."""
    if there["core"] != here["core"]:
        yield f"has paravirt-mm {there['core']}, not {here['core']}"
    for name, origin in here["plugins"].items():
        found = there["plugins"].get(name)
        if found is None:
            reason = f" ({there['broken'][name]})" if name in there["broken"] else ""
            yield f"lacks plugin {name} ({origin}){reason}"
        elif found != origin:
            yield f"has plugin {name} of {found}, not of {origin}"
    for name in there["plugins"].keys() - here["plugins"].keys():
        yield f"has a plugin {name} ({there['plugins'][name]}) that is not installed here"
    for path in there["missing"]:
        yield f"does not see {path}"


@contextmanager
def connect(address: str, paths: Sequence[str]) -> Iterator[tuple[Executor, int]]:
    """Give an executor on the cluster at ``address``, and how many tasks it can do at a time.

    ``paths`` must be visible to every worker. Raises SpecError where the scheduler does not answer,
    has no workers, or a worker lacks something: before any work starts.
    """
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise SpecError(f"needs dask.distributed: {install('cluster')}") from None
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise SpecError(f"no scheduler answers at {address}: {error}") from None
    with client:
        threads = client.nthreads()
        if not threads:
            raise SpecError(f"the scheduler at {address} has no workers; start some: dask worker")
        _check(client, [str(Path(path).absolute()) for path in paths])
        yield client.get_executor(pure=False), sum(threads.values())


def _check(client: Any, paths: Sequence[str]) -> None:
    here = describe()
    problems: list[str] = []
    for worker, there in sorted(client.run(describe, paths, on_error="return").items()):
        if isinstance(there, Exception):
            problems.append(f"{worker} cannot load paravirt-mm: {there}")
        else:
            problems += [f"{worker} {problem}" for problem in differences(here, there)]
    if problems:
        raise SpecError("the cluster cannot do this sweep:\n  " + "\n  ".join(problems))
