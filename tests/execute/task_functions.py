"""Functions that worker processes import, and a stand-in for Dask's client."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time

from qcompiler.errors import CalibrationError

CALLS = 0


def power(payload):
    return lambda task: task ** payload["exponent"]


def whereabouts(payload):
    global CALLS
    CALLS += 1
    calls = CALLS

    def function(task):
        time.sleep(task)
        return os.getpid(), calls, payload

    return function


def inverse(payload):
    return lambda task: 1 / task


def refuse(payload):
    def function(task):
        raise CalibrationError("it overflows.", where="sample 3", hint="Check it.")

    return function


def die(payload):
    """In every process but the first."""
    return lambda task: os._exit(3) if multiprocessing.parent_process() else time.sleep(0.1)


class Future:
    def __init__(self, key, value):
        self.key, self._value = key, value

    def result(self):
        return self._value


class Client:
    last: Client

    def __init__(self, address, timeout, set_as_default):
        Client.last, self.closed, self.scattered = self, False, 0
        assert address == "tcp://cluster:8786" and not set_as_default

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.closed = True

    def as_current(self):
        return contextlib.nullcontext()

    def scatter(self, payload, broadcast):
        self.scattered += 1
        return payload

    def submit(self, function, *arguments, pure):
        assert not pure
        return Future(repr(arguments[-1]), function(*arguments))

    def cancel(self, futures):
        pass


def as_completed(futures):
    return reversed(list(futures))
