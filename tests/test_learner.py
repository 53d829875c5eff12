"""The learner interface, for every learner: seeds, states, snapshots, metrics, refusals."""

import math

import numpy as np
import pytest
from fdql.sac.learner import NotFiniteError, pack_generator, target_entropy, unpack_generator
from fdql.sac.nets import policy_shapes, size_of, views
from learners import (
    batch,
    both_actions,
    every_head,
    every_learner,
    everything,
    named,
    scattered,
    tiny,
)


@every_learner
@both_actions
def test_a_seed_decides_every_bit(make, discrete):
    spec, config = tiny(discrete)
    a, b, c = (make(spec, config, 0.4, seed) for seed in (1, 1, 2))
    for k in range(4):
        for learner in (a, b, c):
            learner.update(*batch(spec, seed=k))
    assert everything(a) == everything(b)
    assert a.state()["params"].tobytes() != c.state()["params"].tobytes()


@every_learner
@both_actions
def test_a_loaded_state_continues_bit_for_bit(make, discrete):
    spec, config = tiny(discrete)
    whole = make(spec, config, 0.4, 1)
    for k in range(5):
        whole.update(*batch(spec, seed=k))
    kept = whole.state()
    resumed = make(spec, config, 0.4, 77)
    resumed.load_state(kept)
    assert everything(resumed) == everything(whole)
    for k in range(5, 16):  # beyond update 10: the temperature is solved again there
        for learner in (whole, resumed):
            b = batch(spec, seed=k)
            learner.update(*b)
        assert everything(resumed) == everything(whole)
    assert kept["updates"][0] == 5  # a state is a copy
    assert resumed.metrics() == whole.metrics()


@every_learner
def test_a_state_that_does_not_fit_is_refused(make):
    learner = make(*tiny(True), 0.4, 0)
    before = everything(learner)
    state = learner.state()
    with pytest.raises(ValueError, match="params"):
        learner.load_state(state | {"params": state["params"][:-1]})
    with pytest.raises(ValueError, match="moments"):
        learner.load_state(state | {"moments": state["moments"].astype(np.float64)})
    with pytest.raises(ValueError, match="this learner needs"):
        learner.load_state({"params": state["params"]})
    assert everything(learner) == before


@every_learner
@both_actions
def test_snapshot_holds_what_acting_needs(make, discrete):
    spec, config = tiny(discrete)
    learner = scattered(make, spec, config)
    learner.update(*batch(spec))
    out = np.full(size_of(policy_shapes(spec)), np.nan, dtype=np.float32)
    mean, scale = np.arange(3, dtype=np.float32), np.arange(3, 6, dtype=np.float32)
    learner.snapshot(out, mean, scale, np.array([7.0], dtype=np.float32))
    p = views(out, policy_shapes(spec))
    assert p["obs_mean"].tolist() == [0, 1, 2]
    assert p["obs_scale"].tolist() == [3, 4, 5]
    assert p["reward_scale"].tolist() == [7]
    assert p["temperature"][0] == pytest.approx(math.exp(learner.ln_temperature))
    for name, array in named(learner, learner.params).items():
        assert np.array_equal(array, p[name])
    first = "critic.w0" if discrete else "actor.w0"
    assert list(p)[4] == first  # the network that acts stands where the acting kernels look for it
    with pytest.raises(ValueError, match="snapshot"):
        learner.snapshot(out[1:], mean, scale, mean[:1])


@every_learner
@both_actions
def test_metrics(make, discrete):
    spec, config = tiny(discrete)
    learner = make(spec, config, 0.4, 0)
    names = "critic_loss critic_grad_norm q_mean td_error clipped_targets entropy temperature"
    wanted = {*names.split(), "target_entropy"}
    if not discrete:
        wanted |= {"actor_loss", "actor_grad_norm", "action_std"}
    assert set(learner.metrics()) == wanted
    assert math.isnan(learner.metrics()["critic_loss"])
    b = batch(spec)
    learner.update(*b)
    m = learner.metrics()
    assert all(math.isfinite(v) for v in m.values())
    assert m["critic_loss"] == pytest.approx(2 * math.log(11), rel=1e-5)  # uniform predictions
    assert m["q_mean"] == pytest.approx(0, abs=1e-6)
    assert m["td_error"] == pytest.approx(np.minimum(np.abs(b[2] / 2), 5).mean(), rel=1e-5)
    assert m["target_entropy"] == target_entropy(spec, config, 1)
    if not discrete:
        assert m["action_std"] == pytest.approx(0.37, rel=0.1)


@every_learner
@both_actions
@every_head
def test_a_nan_stops_the_update_and_spares_the_weights(make, discrete, head):
    spec, config = tiny(discrete, head=head)
    learner = scattered(make, spec, config)
    before = learner.state()
    b = batch(spec)
    b[2][3] = np.nan
    with pytest.raises(NotFiniteError, match="critic gradient norm is nan at update 0"):
        learner.update(*b)
    for name in ("params", "target", "moments", "updates"):
        assert np.array_equal(learner.state()[name], before[name])


@every_learner
@both_actions
def test_a_batch_that_does_not_fit_is_refused(make, discrete):
    spec, config = tiny(discrete)
    learner = make(spec, config, 0.4, 0)
    before = everything(learner)
    good = batch(spec)
    bad = {
        0: good[0][:, :2],
        1: good[1].astype(np.float64),
        2: good[2][:, None],
        3: good[3].astype(np.float64),
        4: np.asfortranarray(good[4]),
        5: good[5][:1],
        7: np.float32(2.0).reshape(()),
        8: good[8].astype(np.float32),
    }
    for at, array in bad.items():
        with pytest.raises(ValueError, match="batch"):
            learner.update(*[array if k == at else a for k, a in enumerate(good)])
    assert everything(learner) == before


@every_learner
@both_actions
def test_exponent_zero_makes_every_priority_one(make, discrete):
    spec, config = tiny(discrete)
    b = batch(spec)
    make(spec, config, 0.0, 0).update(*b)
    assert b[8].tolist() == [1.0] * 6


def test_generator_state_survives_packing():
    rng = np.random.default_rng(3)
    rng.standard_normal(5, dtype=np.float32)  # odd number of half words: one is left over
    packed = pack_generator(rng)
    again = unpack_generator(packed)
    assert packed.dtype == np.uint64
    assert rng.standard_normal(9).tolist() == again.standard_normal(9).tolist()
    assert np.array_equal(pack_generator(rng), pack_generator(again))
