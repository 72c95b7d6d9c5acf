"""Float networks by torch on a card, beside ours: for `benchmarks.gpu`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any


def peer_rows(folder: Path, only: str) -> Iterator[dict[str, Any]]:
    """The float networks in torch, bfloat16, compiled, in a CUDA graph; batch 1 and 32."""
    sys.path.insert(0, str(folder))  # onnx_ir, which the card's environment may lack
    import onnx_ir as ir
    import torch

    from qcompiler.execute.torch import TorchGraph
    from qcompiler.graph.model import Graph

    for path in sorted(folder.glob("*.onnx")):
        if only and not any(part in path.stem for part in only.split(",")):
            continue
        graph = Graph(ir.load(path), path)
        module = TorchGraph(graph).to("cuda", torch.bfloat16)
        name, output = module.inputs[0], module.outputs[0]
        shape = graph.shape(graph.inputs[0])
        for batch in (1, 32):
            x = torch.randn((batch, *shape), device="cuda", dtype=torch.bfloat16)

            def call(x: Any) -> Any:
                return module({name: x})[output]  # noqa: B023

            for kind in ("eager", "compiled"):
                try:
                    with torch.no_grad():
                        run = torch.compile(call, dynamic=False) if kind == "compiled" else call
                        yield {"name": path.stem, "batch": batch, "kind": f"bfloat16 {kind}", "us": _in_graph(run, x)}
                except Exception as error:  # whatever a peer stumbles over is its row
                    yield {
                        "name": path.stem,
                        "batch": batch,
                        "kind": kind,
                        "error": f"{type(error).__name__}: {error}"[:300],
                    }


def _in_graph(run: Callable[[Any], Any], x: Any) -> float:
    """Microseconds of a call captured in a CUDA graph."""
    import torch

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run(x)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    found = []
    for _ in range(5):
        start.record()
        for _ in range(50):
            graph.replay()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) * 1e3 / 50)
    return median(found)
