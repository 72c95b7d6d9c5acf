"""The bundle as a Zephyr module and as an Arduino library: files beside the same sources."""

from __future__ import annotations

import re

from qcompiler import __version__
from qcompiler.targets.c.project import Project

_ZEPHYR_CMAKE = """if(CONFIG_QC_{upper})
  zephyr_library_named(qc_{name})
  zephyr_library_sources({sources})
  zephyr_library_sources_ifdef(CONFIG_QC_{upper}_FLOAT ${{CMAKE_CURRENT_LIST_DIR}}/../src/{name}_float.c)
  zephyr_include_directories(${{CMAKE_CURRENT_LIST_DIR}}/../src)
endif()
"""

_KCONFIG = """config QC_{upper}
    bool "The quantized model {name}"
    help
      Inference with qc_{name}_run of {name}.h: integer only, no heap.

config QC_{upper}_FLOAT
    bool "Float in and out for {name}"
    depends on QC_{upper}
    help
      {name}_float.h, which quantizes inputs and dequantizes outputs.
"""

_MODULE = """name: qc_{name}
build:
  cmake: zephyr
  kconfig: zephyr/Kconfig
"""

_ARDUINO = """name=qc_{name}
version={version}
author=qcompiler
maintainer=qcompiler
sentence=The quantized model {name}.
paragraph=Integer inference with qc_{name}_run of {name}.h: no heap, no float, the same bits on every board.
category=Data Processing
url=https://www.arduino.cc/
architectures=*
includes={name}.h
"""


def module_files(project: Project) -> dict[str, str]:
    """Path -> text. An object of kernels is for one core alone, so with one there is no Arduino library."""
    name, upper = project.name, project.name.upper()
    sources = " ".join(f"${{CMAKE_CURRENT_LIST_DIR}}/../{part}" for part in project.parts())
    found = {
        "zephyr/module.yml": _MODULE.format(name=name),
        "zephyr/Kconfig": _KCONFIG.format(name=name, upper=upper),
        "zephyr/CMakeLists.txt": _ZEPHYR_CMAKE.format(name=name, upper=upper, sources=sources),
    }
    if project.core is None:
        version = ".".join((re.findall(r"\d+", __version__) + ["0", "0", "0"])[:3])
        found["library.properties"] = _ARDUINO.format(name=name, version=version)
    return found
