"""When each pixel is where: a simulation of engines and their rings, pixel by pixel, before there is a circuit.

It gives the cycles of an image and how far the branches before an Add or Concat run apart: the queues there get that
depth. Queues before joins are unbounded here, everything else is as in the circuit, so no order of events in the
circuit needs more: the branch that waits holds what the other one needs to produce its pixel.

Windows have rings, joins have queues; every other engine holds a beat, so what writes to it gives a pixel no faster
than it takes one. A global average is slow at the last pixel of an image, when its sums leave.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

from qcompiler.targets.fpga.engines import Engine, ring_pixels
from qcompiler.targets.fpga.layers import Network, Window

IMAGES = 3
PIPELINE = 12
"""Cycles from the last product of a pixel to its requantization, about."""
BEATS = 2
"""Pixels that an edge holds where there is neither a ring nor a queue: what is on its way, for the order of events."""
WINDOWED = ("dense", "depthwise", "max")
PLACED = ("slice", "pad")
"""Kinds that take pixels one by one, but give others."""


@dataclass(frozen=True)
class Schedule:
    """interval: cycles from image to image; latency: of the first one; depths: (join, input) -> pixels of its queue."""

    interval: int
    latency: int
    depths: Mapping[tuple[str, int], int]


@dataclass(eq=False)
class _Edge:
    writer: _Actor
    reader: _Actor
    pixels: int
    """Of an image."""
    capacity: int | None
    arrived: int = 0
    low: int = 0
    """The oldest pixel that is still held."""
    most: int = 0


@dataclass(eq=False)
class _Actor:
    """Works on pixels in order: its outputs', or its inputs' where only the last one of an image makes an output."""

    pixels: int
    service: int
    latency: int = 0
    only_last: bool = False
    last_service: int = 0
    beside: list[_Actor] = field(default_factory=list)
    """Readers that hold no pixel: they work while this one gives it."""
    follows: bool = False
    """It is such a reader."""
    inputs: list[_Edge] = field(default_factory=list)
    outputs: list[_Edge] = field(default_factory=list)
    need: Callable[[int], int] = lambda j: j
    """Pixel -> last input pixel that it reads."""
    low: Callable[[int], int] | None = None
    """Pixel -> first input pixel that it or a later one reads: a ring. None: pixels are taken one by one."""
    started: int = 0
    free_at: int = 0
    pending: deque[int] = field(default_factory=deque)
    finished: list[int] = field(default_factory=list)

    def pace(self, j: int) -> int:
        """Cycles that pixel j takes, with those that read it beat by beat."""
        last = j == self.pixels - 1
        own = self.last_service if last and self.last_service else self.service
        if self.only_last and not last:
            return own
        return max([own, *(reader.pace(0 if self.only_last else j) for reader in self.beside)])

    def step(self, now: int) -> list[tuple[int, _Actor]]:
        """Do what can be done now: whom to wake when."""
        wake: list[tuple[int, _Actor]] = []
        while self.pending and self.pending[0] <= now and all(_room(edge) for edge in self.outputs):
            self.pending.popleft()
            for edge in self.outputs:
                edge.arrived += 1
                edge.most = max(edge.most, edge.arrived - edge.low)
                wake.append((now, edge.reader))
        image, j = divmod(self.started, self.pixels)
        if now < self.free_at:
            return wake
        if j == 0 and image > len(self.finished):
            self.finished.append(now)
        low = self.low
        for edge in self.inputs if low is not None else ():
            oldest = image * edge.pixels + (low(j) if low is not None else 0)
            if oldest > edge.low:
                edge.low = oldest
                wake.append((now, edge.writer))
        if image == IMAGES or len(self.pending) > 1 + self.latency // self.service:
            return wake
        if any(edge.arrived <= image * edge.pixels + self.need(j) for edge in self.inputs):
            return wake
        for edge in self.inputs if self.low is None else ():
            edge.low += 1
            wake.append((now, edge.writer))
        last = j == self.pixels - 1
        self.started += 1
        self.free_at = now + (1 if self.follows else self.pace(j))
        if last or not self.only_last:
            self.pending.append(self.free_at + self.latency)
            wake.append((self.pending[-1], self))
        return [*wake, (self.free_at, self)]


def _room(edge: _Edge) -> bool:
    return edge.capacity is None or edge.arrived - edge.low < edge.capacity


def schedule(network: Network, engines: Mapping[str, Engine], lanes: Mapping[str, int]) -> Schedule:
    """Of a folded network; engines by the name of their output, lanes by name of the network's inputs and outputs."""
    actors: dict[str, _Actor] = {}
    pixels_of: dict[str, int] = {}
    joins: dict[tuple[str, int], _Edge] = {}

    def connect(source: str, reader: _Actor, capacity: int | None, beside: bool = False) -> _Edge:
        edge = _Edge(actors[source], reader, pixels_of[source], capacity)
        reader.inputs.append(edge)
        actors[source].outputs.append(edge)
        if beside:
            actors[source].beside.append(reader)
            reader.follows = True
        return edge

    for name, stream in network.inputs.items():
        actors[name] = _Actor(stream.pixels, -(-stream.channels // lanes[name]))
        pixels_of[name] = stream.pixels
    for layer in network.layers:
        name, window = layer.output.name, layer.window
        actor = _actor(engines[name])
        for i, source in enumerate(layer.inputs):
            capacity = ring_pixels(window) if layer.kind in WINDOWED and window is not None else BEATS
            if layer.kind in WINDOWED and window is not None and pixels_of[source] != prod(window.input):
                # One row made of all pixels of a stream.
                count = pixels_of[source]
                actor.need, actor.low = _whole(count)
                capacity *= count
            if len(layer.inputs) > 1:
                joins[name, i] = connect(source, actor, None)
            else:
                connect(source, actor, capacity, beside=layer.kind not in WINDOWED + PLACED)
        actors[name], pixels_of[name] = actor, layer.output.pixels
    sinks = []
    for name, source in network.sources.items():
        beats = -(-network.outputs[name].codes // pixels_of[source] // lanes[f"out {name}"])
        sinks.append(_Actor(pixels_of[source], max(1, beats)))
        connect(source, sinks[-1], BEATS, beside=True)
    everyone = [*actors.values(), *sinks]
    heap = [(0, i, actor) for i, actor in enumerate(everyone)]
    count = len(heap)
    while heap:
        now, _, actor = heapq.heappop(heap)
        for when, other in actor.step(now):
            heapq.heappush(heap, (when, count, other))
            count += 1
    times = [max(sink.finished[i] for sink in sinks) for i in range(IMAGES)]
    depths = {key: edge.most + 2 + edge.most // 16 for key, edge in joins.items()}
    return Schedule(times[-1] - times[-2], times[0], depths)


def _whole(count: int) -> tuple[Callable[[int], int], Callable[[int], int]]:
    return lambda j: count - 1, lambda j: 0


def _actor(engine: Engine) -> _Actor:
    layer, window = engine.layer, engine.layer.window
    if layer.kind in WINDOWED:
        assert window is not None
        latency = PIPELINE
        if layer.requantizer is not None:
            way = engine.multiplication
            latency += way.steps * (way.stages + 2)
        actor = _Actor(prod(window.output), engine.repeats * engine.passes, latency)
        actor.need, actor.low = _reach(window)
        return actor
    if layer.kind in PLACED:
        assert window is not None
        actor = _Actor(prod(window.output), max(1, layer.output.channels // engine.out_lanes), 2)
        actor.need, actor.low = _reach(window)
        return actor
    if layer.kind == "sum":
        assert window is not None
        way, parts = engine.multiplication, layer.channels // engine.fold.pe
        latency, drain = way.steps * (way.stages + 2), max(parts, engine.drain)
        if engine.fold.queue:
            return _Actor(prod(window.input), parts, latency + drain, only_last=True)
        return _Actor(prod(window.input), parts, latency, only_last=True, last_service=drain)
    return _Actor(layer.output.pixels, max(1, engine.cycles // layer.output.pixels), 4)


def _reach(w: Window) -> tuple[Callable[[int], int], Callable[[int], int]]:
    """(need, low) of a window."""
    origin = w.before[0] * w.input[1] + w.before[1]

    def need(j: int) -> int:
        y, x = divmod(j, w.output[1])
        row = min(w.input[0] - 1, y * w.strides[0] - w.before[0] + (w.kernel[0] - 1) * w.dilations[0])
        column = min(w.input[1] - 1, x * w.strides[1] - w.before[1] + (w.kernel[1] - 1) * w.dilations[1])
        return max(0, row * w.input[1] + column)

    def low(j: int) -> int:
        y, x = divmod(j, w.output[1])
        return max(0, y * w.strides[0] * w.input[1] + x * w.strides[1] - origin)

    return need, low
