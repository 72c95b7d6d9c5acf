"""What the cuda target can do."""

from qcompiler.minifloat import MX, tokens
from qcompiler.target import Capabilities

CAPABILITIES = Capabilities(
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    activation_bits=(2, 3, 4, 5, 6, 7, 8, 16),
    weight_minifloats=(*tokens(3), *MX),
    activation_minifloats=(*tokens(3), *tokens(3, signed=False)),
    arithmetic=("float", "fixed"),
    float_boundary=True,
)
