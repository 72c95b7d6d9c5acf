"""The quantizer in torch: bit for bit that of numpy, with the gradients of LSQ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.errors import CalibrationError
from qcompiler.formats import Int, QuantParams, parse_format
from qcompiler.quantizer import fake_quantize, quantize
from tests.strategies import seeds

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'qcompiler[learn]'")
FORMATS = [Int(b, s, n) for b in (2, 3, 4, 5, 6, 7, 8, 16) for s in (False, True) for n in (False, True) if s or not n]


def module(params: QuantParams, **learn: bool):
    from qcompiler.execute.torch import Quantizer

    return Quantizer(params).learn(**learn) if learn else Quantizer(params)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
@settings(max_examples=6)
@given(seed=seeds)
def test_equal_over_all_codes_and_midpoints(fmt: Int, seed: int):
    """And the neighbours of midpoints, values far outside, zeros of both signs."""
    rng = np.random.default_rng(seed)
    scale = np.float32(rng.choice([2.0 ** rng.integers(-12, 4), rng.uniform(1e-4, 3)]))
    zero_point = int(rng.integers(fmt.min, fmt.max + 1))
    params = QuantParams(fmt, scale, zero_point)
    steps = np.arange(fmt.min - 3, fmt.max + 4) - zero_point
    x = np.concatenate([steps, steps + 0.5]).astype(np.float32) * scale
    far = np.array([0.0, -0.0, 1e30, -1e30, 3e-39, -3e-39], np.float32)
    x = np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-9e9)), far])
    for learn in ({}, {"scale": True}, {"scale": True, "zero_point": True}):
        one = module(params, **learn)
        got = one(torch.from_numpy(x)[None])[0].detach().numpy()
        assert same_bits(got, fake_quantize(x, params))
        np.testing.assert_array_equal(one.codes(torch.from_numpy(x)[None])[0].numpy(), quantize(x, params))
    assert one.params() == params


@pytest.mark.parametrize("token", ["e1m3", "e2m0", "e2m1", "ue2m2", "e3m0", "e3m2", "e3m4", "ue4m2", "float8e4m3fn",
                                   "e5m2", "float8e5m2"])  # fmt: skip
@settings(max_examples=6)
@given(seed=seeds)
def test_minifloats_are_equal_over_all_codes_and_midpoints(token: str, seed: int):
    rng = np.random.default_rng(seed)
    scale = np.float32(rng.choice([2.0 ** rng.integers(-12, 4), rng.uniform(1e-4, 3)]))
    params = QuantParams(parse_format(token), scale)
    levels = params.format.decode(params.format.codes()).astype(np.float64)
    x = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2, [0.0, -0.0, 1e30, -1e30]]).astype(np.float32) * scale
    x = np.concatenate([x, np.nextafter(x, np.float32(9e9)), np.nextafter(x, np.float32(-9e9))])
    one = module(params, scale=True, scaled_gradient=True)
    given = torch.from_numpy(x)[None].requires_grad_()
    got = one(given)[0]
    assert same_bits(got.detach().numpy(), fake_quantize(x, params))
    np.testing.assert_array_equal(one.codes(torch.from_numpy(x)[None])[0].numpy(), quantize(x, params))
    assert one.params() == params
    got.sum().backward()
    low, high = -params.format.largest * params.format.signed, params.format.largest
    inside = (x / scale <= high) & (x / scale >= low)
    np.testing.assert_array_equal(given.grad[0].numpy(), inside)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_equal_per_channel(axis: int):
    rng = np.random.default_rng(7)
    x = (3 * rng.standard_normal((2, 5, 6))).astype(np.float32)
    size = x.shape[axis]
    params = QuantParams(Int(4), rng.uniform(0.1, 1, size), rng.integers(-8, 8, size), axis)
    got = module(params)(torch.from_numpy(x)[None].expand(3, -1, -1, -1))
    for one in got:
        assert same_bits(one.numpy(), fake_quantize(x, params))


def test_gradients_are_those_of_lsq():
    fmt, s, z = Int(4, signed=False), np.float32(0.5), 3  # steps from -3 to 12
    x = torch.tensor([[-2.0, -1.4, 0.3, 1.76, 5.9, 7.0]], requires_grad=True)
    one = module(QuantParams(fmt, s, z), scale=True, zero_point=True)
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    (one(x) * weight).sum().backward()
    ratio = x.detach()[0] / s
    inside = (ratio >= -3) & (ratio <= 12)
    np.testing.assert_array_equal(x.grad[0], torch.where(inside, weight[0], 0))
    by_scale = torch.where(inside, torch.round(ratio) - ratio, ratio.clamp(-3, 12))
    np.testing.assert_allclose(one.scale.grad, (by_scale * weight[0]).sum(), rtol=1e-6)
    np.testing.assert_allclose(one.zero_point.grad, (-float(s) * weight[0])[~inside].sum(), rtol=1e-6)


def test_gradient_scale_of_lsq():
    rng = np.random.default_rng(3)
    x = torch.from_numpy(rng.standard_normal((5, 2, 30)).astype(np.float32))
    params = QuantParams(Int(4), rng.uniform(0.1, 1, 2), 0, 0)
    plain, scaled = module(params, scale=True), module(params, scale=True, scaled_gradient=True)
    plain(x).square().sum().backward()
    scaled(x).square().sum().backward()
    assert same_bits(plain(x).detach().numpy(), scaled(x).detach().numpy())
    np.testing.assert_allclose(scaled.scale.grad, plain.scale.grad / np.sqrt(30 * 7), rtol=1e-5)


def test_the_scale_that_fits_best_is_learned():
    """Descent from a scale that is too large and too small ends near the best one of a search."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, 4000)).astype(np.float32)

    def error(s: float) -> float:
        return float(np.mean((fake_quantize(x, QuantParams(Int(3), s)) - x) ** 2))

    best = min(error(s) for s in np.linspace(0.05, 2, 400))
    for start in (0.1, 1.5):
        one = module(QuantParams(Int(3), start), scale=True)
        optimizer = torch.optim.Adam([one.scale], lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            (one(torch.from_numpy(x)) - torch.from_numpy(x)).square().mean().backward()
            optimizer.step()
        assert error(float(one.params().scale)) < 1.02 * best


def test_a_scale_that_left_its_range_is_an_error():
    one = module(QuantParams(Int(8), 0.5), scale=True)
    with torch.no_grad():
        one.scale.fill_(-0.25)
    with pytest.raises(CalibrationError, match="became -0.25.*learning rate"):
        one.params()


def test_disabled_it_lets_values_pass():
    one = module(QuantParams(Int(2), 0.5))
    x = torch.randn(2, 3)
    one.enabled = False
    assert one(x) is x


@given(value=st.floats(-100, 100, width=32))
def test_rounding_has_the_gradient_of_the_identity(value: float):
    from qcompiler.execute.torch import ste_ceil, ste_floor, ste_round

    for through, exact in ((ste_round, np.rint), (ste_floor, np.floor), (ste_ceil, np.ceil)):
        x = torch.tensor([value], requires_grad=True)
        y = through(x)
        (3 * y).sum().backward()
        assert y.item() == exact(np.float32(value)) and x.grad.item() == 3
