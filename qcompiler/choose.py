"""The recipe `auto`: from a model and the widths asked for to the passes that serve them, with the reason for each.

The file recipes/auto.toml lists every pass that may serve, in order. Here is said when each of them does; the others of
the file always run. What was chosen, and why, goes into the report.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from qcompiler.assignment import is_product_of_activations
from qcompiler.graph.model import Graph, attribute
from qcompiler.recipe import Recipe

AUTO = "auto"
"""Name of the recipe."""


@dataclass(frozen=True)
class Facts:
    """What the choice depends on."""

    weight_bits: int
    activation_bits: int
    depthwise: bool
    """Whether a convolution has as many groups as channels."""
    norms: bool
    """Whether there is a layer normalization, as an operator or spelled out."""
    attention: bool
    """Whether there is a Softmax and a product of two activations."""


@dataclass(frozen=True)
class Part:
    """A pass of auto.toml that runs when `serves` says so."""

    serves: Callable[[Facts], bool]
    why: str
    """In the report where it runs."""


def _low(facts: Facts) -> bool:
    return min(facts.weight_bits, facts.activation_bits) < 8


PARTS: dict[str, Part] = {
    "assign_bits": Part(lambda facts: False, "a budget: the integer program chooses the bits of every weight"),
    # Below 8 bits this one costs more in the weights than it wins (kws W4A4: 14.4 dB without, 11.7 dB with).
    "cross_layer_equalization": Part(
        lambda facts: facts.depthwise and not _low(facts), "depthwise convolutions, whose channels differ in range"
    ),
    "equalize_activations": Part(
        lambda facts: facts.depthwise, "linear bottlenecks between depthwise convolutions share one activation scale"
    ),
    "logarithms": Part(
        lambda facts: facts.attention and facts.activation_bits <= 6,
        "attention probabilities span powers of two: few bits hold them on a logarithmic grid",
    ),
    # At 3 bits the weights cannot take up the channels' spread: vit_hybrid W3A3 12.7 dB without, 12.5 dB with.
    "repq": Part(
        lambda facts: facts.norms and facts.activation_bits <= 6 and facts.weight_bits >= 4,
        "channels behind normalizations differ in range: their scales are folded into one",
    ),
    # Measured at W4A4: resnet8 14.4 -> 15.0 dB, kws 13.7 -> 15.4, resnet20 18.4 -> 18.5; vit_hybrid 18.0 -> 17.9.
    "search_ranges": Part(
        lambda facts: facts.activation_bits <= 6 and not facts.attention,
        "few codes for activations: their ranges are searched by what layers make of them",
    ),
    "solve_weights": Part(_low, "below 8 bits, refit and GPTQ keep what rounding loses"),
}


def facts_of(graph: Graph, weight_bits: int, activation_bits: int) -> Facts:
    """Read off a loaded FLOAT graph."""
    convolutions = [(attribute(node, "group", 1), graph.const(node.inputs[1])) for node in graph.nodes("Conv")]
    depthwise = any(w is not None and groups > 1 and w.shape[1] == 1 for groups, w in convolutions)
    norms = bool(graph.nodes("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"))
    spelled = any(node.op_type in ("Sqrt", "Rsqrt", "Reciprocal") for node in graph.nodes()) and bool(
        graph.nodes("ReduceMean")
    )
    products = any(is_product_of_activations(graph, node) for node in graph.nodes("MatMul"))
    attention = bool(graph.nodes("Attention")) or products and bool(graph.nodes("Softmax"))
    return Facts(weight_bits, activation_bits, depthwise, norms or spelled, attention)


def choose_passes(recipe: Recipe, facts: Facts) -> tuple[Recipe, list[tuple[str, str]]]:
    """The recipe without the parts that do not serve, and (pass, reason) of those that stay.

    Parts for which the user gave options stay whatever the facts.
    """
    kept = [name for name in recipe.passes if name not in PARTS or name in recipe.options or PARTS[name].serves(facts)]
    asked = {"assign_bits"}  # runs for its options alone
    reasons = [
        (name, PARTS[name].why if name in asked or PARTS[name].serves(facts) else "asked for")
        for name in kept
        if name in PARTS
    ]
    return dataclasses.replace(recipe, passes=tuple(kept)), reasons
