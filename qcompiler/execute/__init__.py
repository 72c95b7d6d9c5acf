"""Executors: onnxruntime for float and QDQ graphs, the numpy oracle for integer graphs."""
