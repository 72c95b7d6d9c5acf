"""Independent tasks on copies: in this process, in several, or on a Dask cluster, with the same results.

`make` is a function of a module that turns a payload into the function that does one task; it is called once in each
worker, so what all tasks share (a model, samples) travels once. Payload, tasks and results are pickled. Nothing else is
distributed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

from qcompiler.errors import QCompilerError, RecipeError, UnsupportedError

Make = Callable[[Any], Callable[[Any], Any]]
SCHEMES = ("tcp://", "tls://", "ws://", "wss://", "inproc://")
"""What addresses of Dask schedulers begin with."""


def check_executor(executor: str) -> None:
    """Raise RecipeError unless it is `serial`, `processes`, `processes:N` or the address of a Dask scheduler."""
    kind, _, count = executor.partition(":")
    if executor in ("serial", "processes") or executor.startswith(SCHEMES):
        return
    if kind != "processes" or not count.isdigit() or int(count) < 1:
        raise RecipeError(
            f"`{executor}` is no executor.",
            where="executor",
            hint="Use serial, processes, processes:4, or the address of a Dask scheduler (tcp://host:8786).",
        )


def run_tasks(make: Make, payload: Any, tasks: Sequence[Any], executor: str = "serial") -> Iterator[tuple[int, Any]]:
    """(index of the task, its result) as they are done; the order is that of the tasks only with `serial`.

    make: importable by name (it is pickled by reference). executor: see `check_executor`; `processes` takes as many as
    this process may use processors. Errors of a task are raised here; what has not started is then given up. Raises
    RecipeError for an unknown executor or when worker processes die, UnsupportedError without `distributed` or without
    a cluster at the address.
    """
    check_executor(executor)
    if executor.startswith(SCHEMES):
        yield from _on_dask(make, payload, tasks, executor)
        return
    count = 1
    if executor != "serial":
        given = executor.partition(":")[2]
        count = min(int(given) if given else _processors(), len(tasks))
    if count <= 1:
        function = make(payload) if tasks else None
        for index, task in enumerate(tasks):
            assert function is not None
            yield index, function(task)
        return
    yield from _in_processes(make, payload, tasks, count)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# -- processes -----------------------------------------------------------------------------------------------------

_FUNCTION: Callable[[Any], Any] | None = None
"""Of this worker process."""


def _begin(make: Make, payload: Any) -> None:
    global _FUNCTION
    _FUNCTION = make(payload)


def _do(task: Any) -> Any:
    assert _FUNCTION is not None
    return _FUNCTION(task)


def _in_processes(make: Make, payload: Any, tasks: Sequence[Any], count: int) -> Iterator[tuple[int, Any]]:
    """This process is one of the `count`: it has begun long before the others have started."""
    import multiprocessing
    from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
    from concurrent.futures.process import BrokenProcessPool

    # Spawned: a forked copy of a process with threads of onnxruntime may hang.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(count - 1, mp_context=context, initializer=_begin, initargs=(make, payload))
    waiting = iter(enumerate(tasks))
    futures: dict[Future[Any], int] = {}
    try:
        own: Callable[[Any], Any] | None = None
        while True:
            for index, task in islice(waiting, max(0, 2 * (count - 1) - len(futures))):  # none has to wait for work
                futures[pool.submit(_do, task)] = index
            for index, task in islice(waiting, 1):
                own = own or make(payload)
                yield index, own(task)
                done = [future for future in futures if future.done()]
                break
            else:
                if not futures:
                    return
                done = list(wait(futures, return_when=FIRST_COMPLETED).done)
            for future in done:
                yield futures.pop(future), future.result()
    except BrokenProcessPool as error:
        raise RecipeError(
            "a worker process died.",
            where="executor",
            hint="In a script, call it below `if __name__ == '__main__':`; else it is memory: use fewer, or serial.",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# -- dask ----------------------------------------------------------------------------------------------------------

_MADE: dict[str, Callable[[Any], Any]] = {}
"""Functions of this Dask worker by key; the latest only."""


def _do_there(make: Make, payload: Any, key: str, task: Any) -> Any:
    if key not in _MADE:
        _MADE.clear()
        _MADE[key] = make(payload)
    return _MADE[key](task)


def _on_dask(make: Make, payload: Any, tasks: Sequence[Any], address: str) -> Iterator[tuple[int, Any]]:
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        hint = "Run: pip install distributed, or use the executor `processes`."
        raise UnsupportedError("a Dask cluster needs `distributed`, which is not installed.", where="executor",
                               hint=hint) from error  # fmt: skip
    import uuid

    try:
        client = Client(address, timeout=10, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        hint = "Start one with `dask scheduler` and `dask worker`; qcompiler must be installed there."
        raise UnsupportedError(f"no Dask scheduler at {address} ({error}).", where="executor", hint=hint) from error
    with client, client.as_current():  # as_completed asks for the current one
        shared, key = client.scatter(payload, broadcast=True), uuid.uuid4().hex
        futures = [client.submit(_do_there, make, shared, key, task, pure=False) for task in tasks]
        place = {future.key: index for index, future in enumerate(futures)}
        try:
            for future in as_completed(futures):
                try:
                    result = future.result()
                except QCompilerError:
                    raise
                except Exception as error:
                    if type(error).__name__ not in ("KilledWorker", "CancelledError", "CommClosedError"):
                        raise
                    raise RecipeError(f"the Dask cluster gave up ({error}).", where="executor",
                                      hint="See the logs of its workers; one may lack memory.") from error  # fmt: skip
                yield place[future.key], result
        finally:
            client.cancel(futures)
