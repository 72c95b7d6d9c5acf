"""Everything that has to be seen on a card, in one call, from a folder that `benchmarks.gpu_prepare` made.

    python -m benchmarks.gpu FOLDER [--json FILE] [--only PARTS] [--seconds 400]

Needs the driver, numpy and torch; no TVM, no compiler. Bundles are compared with the oracle's vectors bit for bit and
timed (graph alone, and with copies of numpy arrays); every kernel of some is timed alone and put beside what memory and
tensor cores could do; products of 4096^3 stand beside the bare instruction; float networks run in torch beside ours.
Exit code 1 on any wrong bit.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from ctypes import c_int32, c_void_p
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu_peers import peer_rows
from qcompiler.runtime.cuda_driver import Driver
from qcompiler.runtime.cuda_loader import CudaSession

DENSE_INT8 = {90: 1979e12, 80: 624e12, 89: 660e12}
"""Operations a second that vendors name for dense int8 (SXM cards)."""
UNPROFILED = ("suite", "fuzz", "fused", "old")


class Clock:
    """Times on the card, by events."""

    def __init__(self, driver: Driver, stream: int) -> None:
        self.driver, self.stream = driver, stream
        self.start, self.end = (driver.handle("cuEventCreate", 0) for _ in range(2))

    def __call__(self, work: Callable[[], None], count: int, rounds: int = 5) -> float:
        """Seconds of one `work`, the median of rounds of `count`."""
        work()
        found = []
        for _ in range(rounds):
            self.driver.call("cuEventRecord", self.start, self.stream)
            for _ in range(count):
                work()
            self.driver.call("cuEventRecord", self.end, self.stream)
            self.driver.call("cuEventSynchronize", self.end)
            found.append(self.driver.milliseconds(self.start, self.end) / 1e3 / count)
        return median(found)


def vectors(path: Path, session: Any) -> Iterator[tuple[dict[str, NDArray], list[NDArray]]]:
    """(inputs, the oracle's outputs) that were packed beside a bundle."""
    if not (path / "vectors.npz").is_file():
        return
    with np.load(path / "vectors.npz") as stored:
        s = 0
        while f"out_{s}_0" in stored:
            inputs = {spec["name"]: stored[f"in_{s}_{i}"] for i, spec in enumerate(session.inputs)}
            yield inputs, [stored[f"out_{s}_{i}"] for i in range(len(session.outputs))]
            s += 1


def bundle_row(path: Path) -> dict[str, Any]:
    """Bits and times of a bundle."""
    start = time.perf_counter()
    with CudaSession(path, early=True) as session:
        row: dict[str, Any] = {"name": path.name, "load_s": time.perf_counter() - start, "code": session.code}
        row |= {"card": session.name, "kernels": len(session.launches), "compared": 0, "wrong": []}
        for inputs, wanted in vectors(path, session):
            for spec, want, got in zip(session.outputs, wanted, session.run(inputs), strict=True):
                row["compared"] += 1
                if want.tobytes() != got.tobytes():
                    different = float((want != got).mean()) if want.shape == got.shape else 1.0
                    row["wrong"].append([spec["name"], different])
        graph, clock = session.graph(), Clock(session.driver, session.stream)
        row["graph_us"] = 1e6 * clock(lambda: session.driver.call("cuGraphLaunch", graph, session.stream), 50)
        if session.early and not path.name.startswith(UNPROFILED):
            with CudaSession(path, check=False, early=False) as plain:
                graph = plain.graph()
                row["late_us"] = 1e6 * clock(lambda: plain.driver.call("cuGraphLaunch", graph, session.stream), 50)
        row["early"] = session.early
        if row["compared"]:
            inputs = {spec["name"]: np.zeros(spec["shape"], spec["dtype"]) for spec in session.inputs}
            first = session.run(inputs)
            times, row["repeated"] = [], True
            for _ in range(20):
                begin = time.perf_counter()
                again = session.run(inputs)
                times.append(time.perf_counter() - begin)
                row["repeated"] &= all(a.tobytes() == b.tobytes() for a, b in zip(first, again, strict=True))
            row["run_us"] = 1e6 * median(times)
        if not path.name.startswith(UNPROFILED):
            row["launches"] = list(profile(session, clock))
        return row


def profile(session: Any, clock: Clock) -> Iterator[dict[str, Any]]:
    """Every launch alone, twenty times in a row: warm caches."""
    for launch in session.launches:
        seconds = clock(lambda launch=launch: session.launch(launch), 20, 3)  # type: ignore[misc]
        row = {"kernel": launch["kernel"], "node": launch["node"], "grid": launch["grid"], "us": seconds * 1e6}
        row |= {"gbs": launch["bytes"] / seconds / 1e9, "tops": 2 * launch["macs"] / seconds / 1e12}
        yield row | {key: launch[key] for key in ("bytes", "fetched", "macs", "tiled") if key in launch}


class Kernels:
    """The kernels that stand alone."""

    def __init__(self, folder: Path, driver: Driver, stream: int) -> None:
        self.driver, self.stream = driver, stream
        self.document = json.loads((folder / "kernels.json").read_text())
        self._image = (folder / self.document["cubin"]).read_bytes()
        self._module = driver.handle("cuModuleLoadData", ctypes.cast(ctypes.c_char_p(self._image), c_void_p))
        self.clock = Clock(driver, stream)

    def launch(self, entry: dict[str, Any], pointers: list[int]) -> Callable[[], None]:
        """A function that launches."""
        function = self.driver.handle("cuModuleGetFunction", self._module, entry["kernel"].encode())
        if entry["shared"] > 48 * 1024:
            self.driver.call("cuFuncSetAttribute", function, 8, entry["shared"])
        values = [*(c_void_p(p) for p in pointers), *(c_int32(n) for n in entry["numbers"])]
        addresses = (c_void_p * len(values))(*(ctypes.addressof(v) for v in values))

        def launch() -> None:
            _ = values  # what the addresses are of
            self.driver.call(
                "cuLaunchKernel", function, *entry["grid"], entry["threads"], 1, 1, entry["shared"], self.stream,
                addresses, None,
            )  # fmt: skip

        return launch

    def peak(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Operations a second of a kernel that only multiplies."""
        import torch

        y = torch.zeros(entry["grid"][0] * entry["threads"], dtype=torch.int32, device="cuda")
        seconds = self.clock(self.launch(entry, [y.data_ptr()]), 3)
        return {"label": entry["label"], "us": seconds * 1e6, "tops": 2 * entry["macs"] / seconds / 1e12}

    def product(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Bits and rate of a product; the share of memory's rate by the weights alone."""
        import torch

        m, n, k, bits = entry["rows"], entry["side"], entry["inner"], entry["bits"]
        cuda, top = torch.device("cuda"), 1 << bits - 1
        torch.manual_seed(0)
        x = torch.randint(0, 16 if entry["narrow"] else 256, (m, k), dtype=torch.uint8, device=cuda)
        w = torch.randint(-top, top, (n, k), dtype=torch.int8, device=cuda)
        bias = torch.randint(-1000, 1000, (n,), dtype=torch.int32, device=cuda)
        scale = torch.full((n,), 3e-5 * 128 / top * (4096 / k) ** 0.5, dtype=torch.float32, device=cuda)
        y = torch.zeros((m, n), dtype=torch.uint8, device=cuda)
        rest = torch.zeros(64, dtype=torch.int32, device=cuda)
        packed = packed_weights(w, entry["channels"], entry["step"], bits)
        pointers = [x, y, packed, bias, scale, rest, rest]
        if entry["sums"]:  # counters are 0 at first; the sums need not be anything
            pointers += [torch.full((entry["sums"],), -1, dtype=torch.int32, device=cuda),
                         torch.zeros(entry["grid"][0] * entry["grid"][1], dtype=torch.int32, device=cuda)]  # fmt: skip
        launch = self.launch(entry, [t.data_ptr() for t in pointers])
        launch()
        torch.cuda.synchronize()
        signed = (x.to(torch.int16) - 128).to(torch.int8)
        signed = torch.cat([signed, signed.new_zeros((max(0, 32 - m), k))])  # cuBLAS wants more than 16 rows
        sums = torch._int_mm(signed, w.t())[:m] + 128 * w.to(torch.int32).sum(1, dtype=torch.int32) + bias
        want = torch.clamp(torch.round(sums.to(torch.float32) * scale), 0, 255).to(torch.uint8)
        exact = bool(torch.equal(want, y))
        seconds = self.clock(launch, 10)
        exact = exact and bool(torch.equal(want, y))  # again after many runs
        row = {"label": entry["label"], "exact": exact, "us": seconds * 1e6, "tops": 2 * m * n * k / seconds / 1e12}
        row |= {"share_of_dense_int8": 2 * m * n * k / seconds / DENSE_INT8[90], **entry["usage"]}
        row |= {"weights_gbs": packed.numel() / seconds / 1e9, "mean": float(y.float().mean())}
        return row | {"launch": entry["priced"]}

    def pair(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Bits and rate of a product of two activations."""
        import torch

        batch, m, k, n = (entry[name] for name in ("batch", "rows", "inner", "columns"))
        torch.manual_seed(0)
        a = torch.randint(0, 256, (batch, m, k), dtype=torch.uint8, device="cuda")
        b = torch.randint(0, 256, (batch, n, k) if entry["keys"] else (batch, k, n), dtype=torch.uint8, device="cuda")
        scale = torch.full((1,), 1e-2 / k**0.5, dtype=torch.float32, device="cuda")
        y = torch.zeros((batch, m, n), dtype=torch.uint8, device="cuda")
        zeros = torch.zeros(entry["zero_bytes"], dtype=torch.uint8, device="cuda")
        launch = self.launch(entry, [t.data_ptr() for t in (a, b, y, scale, zeros)])
        launch()
        torch.cuda.synchronize()
        left, right = (t.double() - zero for t, zero in zip((a, b), entry["zeros"], strict=True))
        sums = left @ (right.transpose(1, 2) if entry["keys"] else right)  # exact: below 2^53
        want = torch.clamp(torch.round(sums.float() * scale), 0, 255).to(torch.uint8)
        exact = bool(torch.equal(want, y))
        seconds = self.clock(launch, 10)
        row = {"label": entry["label"], "exact": exact, "us": seconds * 1e6, **entry["usage"]}
        row |= {"tops": 2 * batch * m * n * k / seconds / 1e12, "mean": float(y.float().mean())}
        return row | {"launch": entry["priced"]}

    def thin_float(self, rows: int, side: int) -> dict[str, Any]:
        """The same product in bfloat16 by torch."""
        import torch

        x, w = (torch.zeros((n, side), dtype=torch.bfloat16, device="cuda") for n in (rows, side))
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.matmul(x, w.t())
        start.record()
        for _ in range(10):
            torch.matmul(x, w.t())
        end.record()
        torch.cuda.synchronize()
        return {"label": f"{rows} rows by {side}^2 weights, bfloat16 (torch)", "us": start.elapsed_time(end) * 100}

    def vendor(self, side: int) -> dict[str, Any]:
        """torch._int_mm, which is cuBLAS: int32 out, no requantization."""
        import torch

        x = torch.randint(-128, 128, (side, side), dtype=torch.int8, device="cuda")
        torch._int_mm(x, x.t())
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(10):
            torch._int_mm(x, x.t())
        end.record()
        torch.cuda.synchronize()
        seconds = start.elapsed_time(end) / 1e4
        return {"label": "cuBLAS int8 (torch._int_mm)", "us": seconds * 1e6, "tops": 2 * side**3 / seconds / 1e12}

    def copy(self, size: int = 1 << 29) -> dict[str, Any]:
        """Bytes a second, read and written, of a copy on the card."""
        import torch

        a, b = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        call = self.driver.call
        seconds = self.clock(lambda: call("cuMemcpyDtoDAsync_v2", b.data_ptr(), a.data_ptr(), size, self.stream), 10)
        return {"label": "copy on the card", "us": seconds * 1e6, "gbs": 2 * size / seconds / 1e9}


def packed_weights(codes: Any, channels: int, step: int, bits: int) -> Any:
    """What targets/cuda/pack.py makes of codes [N, K], a torch tensor."""
    n, k = codes.shape
    tiled = codes.view(n // channels, channels, k // step, step).permute(0, 2, 1, 3).contiguous()
    if bits == 8:
        return tiled
    many = 8 // bits
    parts = (tiled & ((1 << bits) - 1)).view(-1, many, 16)
    packed = parts[:, 0].clone()
    for i in range(1, many):
        packed |= parts[:, i] << (bits * i)
    return packed


def main() -> int:
    """Rows to the terminal and the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", help="parts of names of bundles, separated by commas")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=400.0, help="leave out what has not begun by then")
    parser.add_argument("--skip", default="", help="of kernels, bundles, peers: what is left out")
    given = parser.parse_args()
    begin = time.perf_counter()
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "card": ""}
    found |= {section: [] for section in ("kernels", "bundles", "peers", "errors")}

    def late() -> bool:
        return time.perf_counter() - begin > given.seconds

    def note(section: str, row: dict[str, Any]) -> None:
        found[section].append(row)
        found["card"] = row.get("card") or found["card"]
        shown = {key: round(v, 3) if isinstance(v, float) else v for key, v in row.items()
                 if key not in ("launches", "launch")}  # fmt: skip
        print(section, *(f"{key}={value}" for key, value in shown.items()), flush=True)
        found["seconds"] = time.perf_counter() - begin
        if given.json is not None:
            given.json.write_text(json.dumps(found, indent=1) + "\n")

    def attempt(what: str, work: Callable[[], None]) -> None:
        if late():
            note("errors", {"what": what, "error": "left out: no time"})
            return
        try:
            work()
        except Exception as error:  # one failure must not cost the rest of a card's time
            note("errors", {"what": what, "error": f"{type(error).__name__}: {error}"[:600],
                            "trace": traceback.format_exc()[-1500:]})  # fmt: skip

    if (given.folder / "kernels").is_dir() and "kernels" not in given.skip:
        import torch

        torch.zeros(1, device="cuda")
        driver = Driver()
        kernels = Kernels(given.folder / "kernels", driver, 0)
        found["card"] = torch.cuda.get_device_name()
        attempt("copy", lambda: note("kernels", kernels.copy()))
        for entry in kernels.document["kernels"]:
            work = {"peak": kernels.peak, "pair": kernels.pair, "product": kernels.product}[entry["kind"]]
            attempt(entry["label"], lambda work=work, entry=entry: note("kernels", work(entry)))  # type: ignore[misc]
        attempt("bfloat16", lambda: note("kernels", kernels.thin_float(16, 16384)))
        attempt("cuBLAS", lambda: note("kernels", kernels.vendor(4096)))
        torch.cuda.empty_cache()
    if "bundles" not in given.skip:
        for path in sorted((given.folder / "networks").iterdir()):
            if not given.only or any(part in path.name for part in given.only.split(",")):
                attempt(path.name, lambda path=path: note("bundles", bundle_row(path)))  # type: ignore[misc]
    if "peers" not in given.skip and (given.folder / "float").is_dir():

        def peers() -> None:
            for row in peer_rows(given.folder / "float", given.only):
                note("peers", row)
                if late():
                    return

        attempt("peers", peers)
    bad = [row["name"] for row in found["bundles"] if row["wrong"] or row.get("repeated") is False]
    bad += [row["label"] for row in found["kernels"] if row.get("exact") is False]
    compared = sum(row["compared"] for row in found["bundles"])
    print(
        f"{compared} outputs compared with the oracle; "
        + (f"WRONG: {bad}" if bad else "every bit is right" if compared else "nothing was compared")
    )
    return 1 if bad or not compared else 0


if __name__ == "__main__":
    sys.exit(main())
