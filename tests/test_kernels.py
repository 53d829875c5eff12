"""The compiled learner's kernels: values worked out by hand, float64 networks, the torch learner.

What every learner must do is in test_learner.py and test_update.py; here is the rest.
"""

import math

import numpy as np
import pytest
import torch
from fdql.config import SacConfig
from fdql.sac import jit
from fdql.sac import kernels_gauss as gauss
from fdql.sac import kernels_heads as heads
from fdql.sac import kernels_math as elementary
from fdql.sac.kernels import CompiledLearner
from fdql.sac.kernels_backward import backward, backward_input
from fdql.sac.kernels_critic import Rates
from fdql.sac.kernels_dense import Hidden, forward, net_at
from fdql.sac.kernels_discrete import sort_by_action
from fdql.sac.kernels_targets import priorities
from fdql.sac.nets import NetSpec, actor_shapes, size_of, views
from fdql.sac.update import TorchLearner
from learners import batch, both_actions, every_head, everything, scattered, tiny
from numba import config as numba_config
from scipy import special

compiled_only = pytest.mark.skipif(
    bool(numba_config.DISABLE_JIT), reason="minutes in interpreted Python"
)


def f32(*values):
    return np.array(values, dtype=np.float32)


def zeros(*shape):
    return np.zeros(shape, dtype=np.float32)


# -- arithmetic ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "exact", "low", "high", "relative", "absolute"),
    [
        ("exp", np.exp, -87, 88, 2e-7, 0),
        ("tanh", np.tanh, -12, 12, 3e-7, 0),
        ("erf", special.erf, -5, 5, 0, 6e-7),
        ("log1p_unit", np.log1p, 0, 1, 0, 1.5e-7),
        ("softplus", lambda x: np.logaddexp(0, x), -30, 30, 2e-7, 2e-7),
    ],
)
def test_elementary_functions(name, exact, low, high, relative, absolute):
    function = getattr(elementary, name)
    x = np.linspace(low, high, 4001).astype(np.float32)
    y = np.array([function(v) for v in x], dtype=np.float64)
    np.testing.assert_allclose(y, exact(x.astype(np.float64)), rtol=relative, atol=absolute)
    assert math.isnan(function(np.float32("nan")))
    if name == "exp":
        assert function(np.float32(-1e30)) == function(np.float32(-87)) > 0


# -- formulas, by hand -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "first_bin", "masses"),
    [
        (0.0, 48, [0.02232, 0.22974, 0.49501, 0.22974, 0.02232]),
        (0.05, 50, [0.40878, 0.40878]),  # between the centres 50 and 51
        (5.0, 99, [0.30734, 0.66221]),  # cut off above: .22974 / s, .49501 / s, s = .74751
    ],
)
def test_hl_gauss_mass(y, first_bin, masses):
    first, p = np.zeros(1, np.int64), zeros(1, 11)
    gauss.hl_gauss_target(f32(y), 101, 5.0, 0.75, first, p)
    full = np.zeros(101)
    full[first[0] : first[0] + 11] = p[0]
    np.testing.assert_allclose(full[first_bin : first_bin + len(masses)], masses, atol=1e-4)
    assert full.sum() == pytest.approx(1, abs=1e-6)
    if y < 4:
        assert full @ np.linspace(-5, 5, 101) == pytest.approx(y, abs=1e-6)


def test_hl_gauss_window_wider_than_the_bins_is_all_of_them():
    first, p = np.zeros(2, np.int64), zeros(2, 3)
    gauss.hl_gauss_target(f32(-5, 1), 3, 5.0, 0.75, first, p)
    edges = np.array([-7.5, -2.5, 2.5, 7.5])
    for y, row in zip((-5, 1), p, strict=True):
        mass = np.diff(special.erf((edges - y) / (0.75 * 5 * math.sqrt(2))))
        np.testing.assert_allclose(row, mass / mass.sum(), atol=1e-6)


def test_cross_entropy_of_a_uniform_prediction():
    # two bins, logits 0 and target (1/4, 3/4): loss ln 2, gradient (1/2 - p), value 0
    logits, q = zeros(1, 2), f32(9)
    loss = gauss.cross_entropy_gradient(
        logits, f32(-1, 1), np.zeros(1, np.int64), f32(0.25, 0.75).reshape(1, 2), q
    )
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(logits[0], [0.25, -0.25])
    assert q[0] == 0


def test_value_gradient_by_hand():
    # p = (.2689, .7311) on (-1, 1): Q = .4621, dQ/dl = p (b - Q) = (-.3932, .3932); weight 2
    logits, q = f32(0, 1).reshape(1, 2), f32(0)
    gauss.value_gradient(logits, f32(-1, 1), 2.0, q)
    np.testing.assert_allclose(logits[0], [-0.78645, 0.78645], rtol=1e-4)
    assert q[0] == pytest.approx(math.tanh(0.5), rel=1e-6)


def test_far_apart_logits_of_different_rows_do_not_disturb_each_other():
    logits = np.array([[300.0, 0, 0], [-300.0, -301, -400]], dtype=np.float32)
    out = f32(0, 0)
    gauss.mean_value(logits, f32(-1, 0, 1), out)
    # second row: softmax (1, e^-1, e^-100): -1 / (1 + e^-1)
    np.testing.assert_allclose(out, [-1, -0.731059], rtol=1e-5)


def test_boltzmann_by_hand():
    # Q = (1, 0), temperature 1: pi = .7311, .2689, entropy .5822
    q, policy, entropy = f32(1, 0).reshape(1, 2), zeros(1, 2), zeros(1)
    mean = heads.boltzmann_policy(q, 1.0, policy, entropy)
    assert mean == entropy[0] == pytest.approx(0.5822, abs=1e-4)
    np.testing.assert_allclose(policy[0], [0.7311, 0.2689], atol=1e-4)
    # the root of entropy(t) = .5822 is t = 1, the interval's end; half its width is 11.5 / 8192
    assert heads.temperature_root(q, 0.5822, math.log(1e-5), policy, entropy) == pytest.approx(
        0, abs=2e-3
    )
    assert heads.temperature_root(q, 0.0, math.log(1e-5), policy, entropy) < math.log(1.01e-5)


def test_squashed_density_by_hand():
    # noise 0, std 1: u = mean, ln density = -ln sqrt(2 pi) - 2 (ln 2 - u - softplus(-2 u))
    raw = math.atanh(10 / 6 - 1)  # -10 + 6 (1 + tanh raw) = 0
    for u, correction in ((0.0, 0.0), (2.0, -2.65)):
        out, each = f32(u, raw).reshape(1, 2), zeros(1)
        density, std = heads.tanh_normal_ln_density(out, zeros(1, 1), each)
        assert density == each[0] == pytest.approx(-0.9189 - correction, abs=1e-3)
        assert std == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("action", [[2, 0, 2, 1, 0], [1, 1, 1], [0], [2, 2]])
def test_sort_by_action_is_stable(action):
    order, starts = np.zeros(len(action), np.int64), np.zeros(4, np.int64)
    sort_by_action(np.array(action, dtype=np.int32), order, starts)
    assert order.tolist() == np.argsort(action, kind="stable").tolist()
    assert np.diff(starts).tolist() == np.bincount(action, minlength=3).tolist()


# -- networks --------------------------------------------------------------------------------------


def test_network_gradient_against_finite_differences():
    """d(sum of out * weight)/d(parameter or input), differences of a float64 forward pass."""
    rng = np.random.default_rng(0)
    spec = NetSpec(obs_dim=3, action_dim=2, discrete=False, actor_width=8)
    rows, shapes = 5, actor_shapes(spec)
    flat = rng.normal(0, 0.7, size_of(shapes))
    x, weight = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 4))

    def loss(flat, x):
        p = {name.split(".")[1]: a for name, a in views(flat, shapes).items()}
        for k in "01":
            z = x @ p["w" + k] + p["b" + k]
            z = (z - z.mean(1, keepdims=True)) / np.sqrt(z.var(1, keepdims=True) + 1e-5)
            x = np.maximum(p["g" + k] * z + p["h" + k], 0)
        return float(((x @ p["w2"] + p["b2"]) * weight).sum())

    def differences(function, at):
        steps = 1e-6 * np.eye(at.size).reshape(-1, *at.shape)
        slopes = [(function(at + h) - function(at - h)) / 2e-6 for h in steps]
        return np.array(slopes).reshape(at.shape)

    net = net_at(flat.astype(np.float32), 0, 1, 0, 3, 8, 4)
    gradient = np.full(size_of(shapes), np.nan, dtype=np.float32)
    n0, x1, n1, x2, d2, d1 = (zeros(rows, 8) for _ in range(6))
    hidden, out = Hidden(n0, x1, zeros(rows), n1, x2, zeros(rows)), zeros(rows, 4)
    d = weight.astype(np.float32)
    forward(net, x.astype(np.float32), hidden, out)
    backward(net, net_at(gradient, 0, 1, 0, 3, 8, 4), x.astype(np.float32), hidden, d, d2, d1)
    exact = differences(lambda f: loss(f, x), flat)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())

    dx = zeros(rows, 2)
    backward_input(net, hidden, d, d2, d1, 1, dx)
    exact = differences(lambda x: loss(flat, x), x)[:, 1:]
    np.testing.assert_allclose(dx, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())


SHAPES = [  # obs_dim, action_dim, width, bins, rows
    (1, 1, 8, 3, 1),
    (3, 2, 24, 11, 7),
    (17, 6, 33, 51, 40),
    pytest.param((4, 2, 128, 101, 256), marks=compiled_only),
    pytest.param((130, 20, 64, 101, 64), marks=compiled_only),
    pytest.param((5, 3, 512, 101, 30), marks=compiled_only),
]


@both_actions
@every_head
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_equal_torch(discrete, shape, head):
    """After one update without clipping the first moment is a tenth of the gradient."""
    obs_dim, action_dim, width, bins, rows = shape
    config = SacConfig(
        critic_width=width, actor_width=width, bins=bins, quantiles=bins, head=head,
        gradient_clip=1e9, entropy_backup=0.5,
    )  # fmt: skip
    spec = NetSpec(obs_dim=obs_dim, action_dim=action_dim, discrete=discrete, **config.net_shape)
    ours, theirs = (scattered(m, spec, config, seed=2) for m in (CompiledLearner, TorchLearner))
    b, c = (batch(spec, size=rows) for _ in range(2))
    ours.update(*b)
    theirs.update(*c)
    np.testing.assert_allclose(b[8], c[8], rtol=1e-4)
    split = len(ours.target)
    for part in (slice(0, split), slice(split, None))[: 1 if discrete else 2]:
        mine, exact = ours.moments[0, part], theirs.moments[0, part]
        assert np.linalg.norm(mine - exact) < 1e-4 * np.linalg.norm(exact)
    for name, value in theirs.metrics().items():
        assert ours.metrics()[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


@compiled_only
@both_actions
@every_head
def test_a_hundred_updates_stay_beside_torch(discrete, head):
    """Ten stay within rounding; later a relu on the edge may fall either way and the paths part."""
    torch.set_num_threads(1)
    config = SacConfig(critic_width=32, actor_width=32, head=head)
    spec = NetSpec(obs_dim=5, action_dim=3, discrete=discrete, **config.net_shape)
    ours, theirs = (m(spec, config, 0.4, 1) for m in (CompiledLearner, TorchLearner))
    for k in range(100):
        b, c = batch(spec, k % 10, 64), batch(spec, k % 10, 64)
        ours.update(*b)
        theirs.update(*c)
        if k == 9:
            assert (np.abs(ours.params - theirs.params) > 2e-5).mean() < 1e-3
            np.testing.assert_allclose(b[8], c[8], rtol=1e-4)
    np.testing.assert_allclose(ours.params, theirs.params, atol=5e-3)
    np.testing.assert_allclose(ours.target, theirs.target, atol=5e-3)
    assert ours.ln_temperature == pytest.approx(theirs.ln_temperature, abs=1e-3)
    for name, value in theirs.metrics().items():
        assert ours.metrics()[name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


# -- memory and cache ------------------------------------------------------------------------------


@both_actions
def test_a_state_of_one_learner_loads_into_the_other(discrete):
    spec, config = tiny(discrete)
    theirs, ours = (m(spec, config, 0.4, s) for m, s in ((TorchLearner, 1), (CompiledLearner, 2)))
    for k in range(3):
        theirs.update(*batch(spec, k))
    ours.load_state(theirs.state())
    assert everything(ours) == everything(theirs)
    b, c = batch(spec, 3), batch(spec, 3)
    ours.update(*b)
    theirs.update(*c)
    np.testing.assert_allclose(ours.params, theirs.params, atol=1e-5)


@both_actions
@every_head
def test_batches_of_changing_size(discrete, head):
    spec, config = tiny(discrete, head=head)
    mixed, other = (scattered(CompiledLearner, spec, config) for _ in range(2))
    for k, size in enumerate((6, 3, 6, 9)):
        mixed.update(*batch(spec, k, size))
        fresh = CompiledLearner(spec, config, 0.4, 0)
        fresh.load_state(other.state())
        fresh.update(*batch(spec, k, size))
        other.load_state(fresh.state())
    assert everything(mixed) == everything(other)


def test_an_action_out_of_range_or_a_read_only_column_is_refused():
    spec, config = tiny(True)
    learner = CompiledLearner(spec, config, 0.4, 0)
    b = batch(spec)
    for wrong in (2, -1):
        b[1][3] = wrong
        with pytest.raises(ValueError, match="action"):
            learner.update(*b)
    b[1][3] = 0
    b[0].setflags(write=False)
    with pytest.raises(ValueError, match="read-only"):
        learner.update(*b)
    assert learner.updates == 0


def test_priorities_by_hand():
    # errors of .5, 2 and 8 bins, exponent .4: 1, 2 ** .4 = 1.3195, 8 ** .4 = 2.2974; row 2 is first
    spec, config = tiny(True)
    learner = CompiledLearner(spec, config, 0.4, 0)
    learner.update(*batch(spec, size=3))
    c = learner._critics[1]._replace(y=f32(0.5, 2, 8), q=zeros(2, 3))
    rates = Rates(1.0, 1.0, 1.0, 5.0, 0.75, 0.0, 0.4, 1.0, 0.0)  # 11 bins on -5..5: one bin is 1
    out = np.zeros(3)
    assert priorities(c, np.array([2, 0, 1]), rates, out) == (0, pytest.approx(3.5))
    np.testing.assert_allclose(out, [1.3195, 2.2974, 1], rtol=1e-4)


@compiled_only
def test_cached_machine_code_is_stamped_with_all_sources():
    for function in (elementary.exp, net_at, forward):
        assert function._cache._cache_file._source_stamp[1] == jit.SOURCES


# -- two threads -----------------------------------------------------------------------------------


@both_actions
@every_head
def test_two_threads_give_the_numbers_of_one(discrete, head):
    spec, config = tiny(discrete, head=head)
    one, two = (CompiledLearner(spec, config, 0.4, 3, threads=n) for n in (1, 2))
    assert (one.thread_counts, two.thread_counts) == ((1,), (1, 2))
    for i in range(30):
        data = batch(spec, seed=i, size=40), batch(spec, seed=i, size=40)
        two.threads = 1 if i in (3, 20, 21) else 2  # also when their number changes
        one.update(*data[0])
        two.update(*data[1])
        np.testing.assert_array_equal(data[0][-1], data[1][-1])  # priorities
    assert everything(one) == everything(two)


def test_a_learner_has_one_thread_or_two():
    with pytest.raises(ValueError, match="threads = 3"):
        CompiledLearner(*tiny(True), 0.4, 0, threads=3)
