"""TensorFlow Lite Micro with CMSIS-NN, from folders with their sources, on MLPerf Tiny's own int8 models."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.peers import Inference, compile_object

CXX, AR = "arm-none-eabi-g++", "arm-none-eabi-ar"
ARENA = 1 << 18

MODELS: dict[str, tuple[str, Sequence[str]]] = {
    "mlperf_tiny_kws": (
        "keyword_spotting/trained_models/kws_ref_model.tflite",
        ("Conv2D", "DepthwiseConv2D", "AveragePool2D", "Reshape", "FullyConnected", "Softmax"),
    ),
    "mlperf_tiny_resnet8": (
        "image_classification/trained_models/pretrainedResnet_quant.tflite",
        ("Conv2D", "Add", "AveragePool2D", "Reshape", "FullyConnected", "Softmax"),
    ),
    "mlperf_tiny_vww": (
        "visual_wake_words/trained_models/vww_96_int8.tflite",
        ("Conv2D", "DepthwiseConv2D", "AveragePool2D", "Reshape", "FullyConnected", "Softmax"),
    ),
    "mlperf_tiny_ad": ("anomaly_detection/trained_models/ad01_int8.tflite", ("FullyConnected",)),
}
"""Network -> file under benchmark/training of mlcommons/tiny, and the operators that the interpreter is given."""

_FOLDERS = (
    *("tensorflow/lite/micro", "tensorflow/lite/micro/arena_allocator", "tensorflow/lite/micro/memory_planner"),
    *("tensorflow/lite/micro/tflite_bridge", "tensorflow/lite/core/api", "tensorflow/lite/core/c"),
    *("tensorflow/lite/kernels", "tensorflow/lite/kernels/internal", "tensorflow/lite/micro/cortex_m_generic"),
    *("tensorflow/compiler/mlir/lite/core/api", "tensorflow/compiler/mlir/lite/schema"),
)
_KERNELS = ("add", "conv", "depthwise_conv", "fully_connected", "pooling", "softmax")
_NOT = ("test", "mock", "fake", "recording", "debug_log", "system_setup", "hexdump")
"""In names of files that are not for firmware, or stand for a board's own."""

_FLAGS = (
    *("-std=c++17", "-fno-rtti", "-fno-exceptions", "-fno-threadsafe-statics", "-fno-unwind-tables"),
    *("-fno-asynchronous-unwind-tables", "-DTF_LITE_STATIC_MEMORY", "-DTF_LITE_DISABLE_X86_NEON", "-DCMSIS_NN"),
    *("-DNDEBUG", "-DTF_LITE_STRIP_ERROR_STRINGS"),
)
"""Those of its Makefile's smallest build, BUILD_TYPE=release."""

_BOARD = """#include <stdarg.h>
#include <stdint.h>
#include <stddef.h>
extern "C" void DebugLog(const char *, va_list) {}
extern "C" int DebugVsnprintf(char *, size_t, const char *, va_list) { return 0; }
namespace tflite {
void InitializeTarget() {}
uint32_t ticks_per_second() { return 0; }
uint32_t GetCurrentTimeTicks() { return 0; }
}
"""


class Tflm:
    """Its library at each level of optimization, built once, and the inferences."""

    def __init__(self, tflm: Path, cmsis_nn: Path, headers: Sequence[Path], tiny: Path, work: Path) -> None:
        """headers: folders that hold `flatbuffers/`, gemmlowp's `fixedpoint/` and `ruy/`."""
        self.tflm, self.cmsis_nn, self.tiny, self.work = tflm, cmsis_nn, tiny, work
        includes = (tflm, cmsis_nn.parent, cmsis_nn, cmsis_nn / "Include", *headers)
        self.includes = [f"-I{folder}" for folder in includes]

    def _sources(self) -> Iterator[Path]:
        for folder in _FOLDERS:
            names = sorted((self.tflm / folder).glob("*.cc"))
            yield from (path for path in names if not any(word in path.stem for word in _NOT) or "core" in folder)
        kernels = self.tflm / "tensorflow/lite/micro/kernels"
        for name in _KERNELS:
            yield kernels / "cmsis_nn" / f"{name}.cc"
            yield kernels / f"{name}_common.cc"
        yield from (
            kernels / f"{name}.cc" for name in ("kernel_util", "reshape", "reshape_common", "micro_tensor_utils")
        )

    def library(self, level: str) -> Path:
        """An archive; whatever an image does not use, the linker leaves out."""
        folder = self.work / f"tflm{level}"
        archive = folder / "libtflm.a"
        if archive.exists():
            return archive
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "board.cc").write_text(_BOARD)
        found = [compile_object(folder / "board.cc", folder / "board.o", level, _FLAGS, CXX)]
        for source in self._sources():
            if source.exists() and source.stem != "micro_time":
                output = folder / (str(source.relative_to(self.tflm)).replace("/", "_") + ".o")
                found.append(compile_object(source, output, level, (*_FLAGS, *self.includes), CXX))
        for source in sorted((self.cmsis_nn / "Source").rglob("*.c")):
            if not any(word in source.stem for word in ("_f16", "_f32", "_flt")):
                output = folder / f"cmsis_{source.stem}.o"
                found.append(compile_object(source, output, level, ("-std=c17", "-DNDEBUG", *self.includes)))
        subprocess.run([AR, "rcs", str(archive), *map(str, found)], check=True)
        return archive

    def inference(self, network: str, level: str) -> Inference:
        """The interpreter on the network's int8 model. Raises CalledProcessError where something does not compile."""
        file, operators = MODELS[network]
        data = (self.tiny / "benchmark" / "training" / file).read_bytes()
        folder = self.work / f"tflm{level}" / network
        folder.mkdir(parents=True, exist_ok=True)
        text = ",".join(map(str, data))
        (folder / "model.c").write_text(
            f"const unsigned char qc_model[{len(data)}] __attribute__((aligned(16))) = {{{text}}};\n"
        )
        model = compile_object(folder / "model.c", folder / "model.o", level, ())
        adds = " ".join(f"resolver.Add{name}();" for name in operators)
        return Inference(
            objects=[model, self.library(level)],
            declarations=f"""#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include <stdlib.h>
extern "C" const unsigned char qc_model[];
alignas(16) static uint8_t arena[{ARENA}];""",
            setup=f"""static tflite::MicroMutableOpResolver<{len(operators)}> resolver;
  {adds}
  static tflite::MicroInterpreter interpreter(tflite::GetModel(qc_model), resolver, arena, {ARENA});
  if (interpreter.AllocateTensors() != kTfLiteOk) exit(2);""",
            run="if (interpreter.Invoke() != kTfLiteOk) exit(3);",
            arena="interpreter.arena_used_bytes()",
            reserved=ARENA,
            compiler=CXX,
            flags=(*_FLAGS, *self.includes),
        )
