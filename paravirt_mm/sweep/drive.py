"""Keep an executor busy with chunks, and store what comes back, in whatever order it comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from itertools import islice

from paravirt_mm.errors import SpecError
from paravirt_mm.sources.inputs import Part
from paravirt_mm.sweep.guard import run_chunk
from paravirt_mm.sweep.settings import Chunk, ChunkResult, Settings
from paravirt_mm.sweep.store import Store


def chunks(parts: Iterable[Part], size: int) -> Iterator[Chunk]:
    """Yield the parts in chunks of ``size``, the same ones every time."""
    remaining = iter(parts)
    number = 0
    while some := tuple(islice(remaining, size)):
        yield Chunk(number, number * size, some)
        number += 1


def drive(
    parts: Iterable[Part],
    settings: Settings,
    store: Store,
    executor: Executor,
    width: int,
    progress: Callable[[int, bool], None] = lambda parts, computed: None,
) -> None:
    """Do what is not done yet, at most ``width`` chunks at a time.

    ``progress`` is told how many parts have been finished, and whether now or by an earlier run.
    Raises SpecError where the inputs are not those that the file was begun with.
    """
    done = store.done()
    running: set[Future[ChunkResult]] = set()

    def collect(limit: int) -> None:
        nonlocal running
        while len(running) > limit:
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                result = future.result()
                store.add(result)
                progress(len(result.parts), True)

    try:
        for chunk in chunks(parts, settings.chunk):
            if chunk.number in done:
                if done.pop(chunk.number) != chunk.digest():
                    raise SpecError(
                        f"the inputs are not those that {store.path} was begun with "
                        f"(from {chunk.parts[0].source} on); choose another -o or remove it"
                    )
                progress(len(chunk.parts), False)
                continue
            running.add(executor.submit(run_chunk, chunk, settings))
            collect(width - 1)
        collect(0)
    finally:
        for future in running:
            future.cancel()
    if done:
        raise SpecError(f"{store.path} was begun with more inputs; choose another -o or remove it")
    store.complete()
