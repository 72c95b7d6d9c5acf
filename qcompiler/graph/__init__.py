"""The graph: a thin wrapper over onnx_ir, its stages, and what graph theory says about it."""
