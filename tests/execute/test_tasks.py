"""The executor of independent tasks: the same results wherever they are done, and what it says when it cannot."""

from __future__ import annotations

import importlib.util
import os
import sys
import types

import pytest

from qcompiler.errors import CalibrationError, RecipeError, UnsupportedError
from qcompiler.execute.tasks import run_tasks
from tests.execute import task_functions


@pytest.mark.parametrize("executor", ["serial", "processes:2"])
def test_every_task_is_done_once(executor: str) -> None:
    found = list(run_tasks(task_functions.power, {"exponent": 3}, range(20), executor))
    assert sorted(found) == [(i, i**3) for i in range(20)]
    assert list(run_tasks(task_functions.power, {"exponent": 3}, [], executor)) == []


def test_processes_are_this_one_and_others_and_get_the_payload_once() -> None:
    task_functions.CALLS = 0
    found = [result for _, result in run_tasks(task_functions.whereabouts, "payload", [0.3] * 30, "processes:3")]
    makers = {pid for pid, _, _ in found}
    assert len(found) == 30 and os.getpid() in makers and 2 <= len(makers) <= 3
    assert {calls for _, calls, _ in found} == {1} and {payload for _, _, payload in found} == {"payload"}


@pytest.mark.parametrize("executor", ["serial", "processes:2"])
def test_errors_of_a_task_arrive_as_they_are(executor: str) -> None:
    with pytest.raises(ZeroDivisionError):
        list(run_tasks(task_functions.inverse, None, [2, 1, 0, 4], executor))
    with pytest.raises(CalibrationError, match="^sample 3: it overflows. Check it.$") as raised:
        list(run_tasks(task_functions.refuse, None, [1, 2], executor))
    assert raised.value.hint == "Check it."


def test_a_dead_worker_is_no_hang() -> None:
    with pytest.raises(RecipeError, match="worker process died"):
        list(run_tasks(task_functions.die, None, range(100), "processes:2"))


@pytest.mark.parametrize("executor", ["threads", "processes:0", "processes:x", "serial:2", "http://here"])
def test_unknown_executors(executor: str) -> None:
    with pytest.raises(RecipeError, match="is no executor"):
        list(run_tasks(task_functions.power, {}, [1], executor))


def test_without_distributed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UnsupportedError, match="`distributed`, which is not installed"):
        list(run_tasks(task_functions.power, {"exponent": 1}, [1], "tcp://127.0.0.1:8786"))


def test_dask_client_is_used_as_it_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with the few calls that are used; the real one below runs where it is installed."""
    module = types.ModuleType("distributed")
    module.Client, module.as_completed = task_functions.Client, task_functions.as_completed  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "distributed", module)
    found = list(run_tasks(task_functions.power, {"exponent": 2}, range(6), "tcp://cluster:8786"))
    assert found == [(i, i * i) for i in reversed(range(6))]
    assert task_functions.Client.last.closed and task_functions.Client.last.scattered == 1


@pytest.mark.skipif(importlib.util.find_spec("distributed") is None, reason="distributed is not installed")
def test_on_a_dask_cluster() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        address = cluster.scheduler_address
        found = list(run_tasks(task_functions.power, {"exponent": 3}, range(20), address))
        assert sorted(found) == [(i, i**3) for i in range(20)]
        with pytest.raises(CalibrationError, match="it overflows"):
            list(run_tasks(task_functions.refuse, None, [1], address))
