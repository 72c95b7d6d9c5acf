"""What the cuda target can do."""

from qcompiler.target import Capabilities

CAPABILITIES = Capabilities(
    weight_bits=(2, 3, 4, 5, 6, 7, 8),
    activation_bits=(2, 3, 4, 5, 6, 7, 8, 16),
    arithmetic=("float", "fixed"),
    float_boundary=True,
)
