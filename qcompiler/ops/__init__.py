"""The integer operators: one definition each, exactly as docs/integer_operators.md says."""

from qcompiler.ops.boundary import DEQUANTIZE, QUANTIZE
from qcompiler.ops.cache import CACHE_WRITE
from qcompiler.ops.choice import COMPARE, MAX, MIN, SELECT, SLOPE
from qcompiler.ops.conv import CONV, CONV_TRANSPOSE
from qcompiler.ops.elementwise import ADD, DIV, MUL, REQUANTIZE, TABLE
from qcompiler.ops.interpolate import INTERPOLATE
from qcompiler.ops.logarithm import LOG_ENCODE
from qcompiler.ops.lookup import GATHER, PIECEWISE
from qcompiler.ops.matmul import BATCH_MATMUL, MATMUL
from qcompiler.ops.movement import (
    CONCAT,
    DEPTH_TO_SPACE,
    EXPAND,
    IDENTITY,
    PAD,
    RESHAPE,
    RESIZE,
    SLICE,
    SPLIT,
    TILE,
    TRANSPOSE,
)
from qcompiler.ops.normalize import NORMALIZE
from qcompiler.ops.operator import Operator
from qcompiler.ops.order import ARG_MAX, ARG_MIN, CAST, TOP_K
from qcompiler.ops.pool import AVERAGE_POOL, MAX_POOL
from qcompiler.ops.reduce import REDUCE_L2, REDUCE_MAX, REDUCE_MEAN, REDUCE_MIN
from qcompiler.ops.softmax import SOFTMAX

OPERATORS: dict[str, Operator] = {
    operator.key: operator
    for operator in (
        ADD,
        ARG_MAX,
        ARG_MIN,
        AVERAGE_POOL,
        BATCH_MATMUL,
        CACHE_WRITE,
        CAST,
        COMPARE,
        CONCAT,
        CONV,
        CONV_TRANSPOSE,
        DEPTH_TO_SPACE,
        DEQUANTIZE,
        DIV,
        EXPAND,
        GATHER,
        IDENTITY,
        INTERPOLATE,
        LOG_ENCODE,
        MATMUL,
        MAX,
        MAX_POOL,
        MIN,
        MUL,
        NORMALIZE,
        PAD,
        PIECEWISE,
        QUANTIZE,
        REDUCE_L2,
        REDUCE_MAX,
        REDUCE_MEAN,
        REDUCE_MIN,
        REQUANTIZE,
        RESHAPE,
        RESIZE,
        SELECT,
        SLICE,
        SLOPE,
        SOFTMAX,
        SPLIT,
        TABLE,
        TILE,
        TOP_K,
        TRANSPOSE,
    )
}
"""Every operator of the integer graph by `domain::name` (default domain: bare name)."""

__all__ = ["OPERATORS", "Operator"]
