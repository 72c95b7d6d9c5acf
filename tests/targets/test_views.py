"""Views of memory under other shapes."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.targets.shared.views import Buffer, View


@given(data=st.data())
def test_regrouped_is_numpys_reshape_without_a_copy(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)))
    order = data.draw(st.permutations(range(len(shape))))
    step = data.draw(st.sampled_from([1, 2]))
    memory = np.arange(int(np.prod(shape)) * step)
    dense = memory[::step].reshape([shape[d] for d in order])
    array = dense.transpose(np.argsort(order))
    total = array.size
    divisors = [d for d in range(1, total + 1) if total % d == 0]
    first = data.draw(st.sampled_from(divisors))
    second = data.draw(st.sampled_from([d for d in divisors if (total // first) % d == 0]))
    wanted = (first, second, total // first // second)
    strides = tuple(s // memory.itemsize for s in array.strides)
    found = View(Buffer("arena", memory.nbytes, "x"), "int64", shape, strides).regrouped(wanted)
    whole = array.reshape(wanted)
    if found is None:
        assert not np.shares_memory(whole, memory)
        return
    spread = np.lib.stride_tricks.as_strided(memory, wanted, [s * memory.itemsize for s in found.strides])
    np.testing.assert_array_equal(spread, whole)


def test_a_broadcast_view_is_regrouped() -> None:
    view = View(Buffer("arena", 8, "x"), "uint8", (2, 3, 4), (0, 0, 1))
    found = view.regrouped((6, 4))
    assert found is not None and found.strides == (0, 1)
    assert view.regrouped((24,)) is None
