"""Shapes, order in memory and initial values of every network; numpy only, shared by all learners.

All parameters of a learner live in one flat float32 vector, so that a snapshot is one copy and both
learners (torch reference, compiled) address the same bytes. Stage 5 of 8, `update`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
Flat = TypeVar("Flat", bound=Any)  # numpy array or torch tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class NetSpec:
    """What decides the shape of the networks.

    obs_dim        numbers of one input: components of a flattened Box, or of an image stack
    action_dim     number of actions when discrete, components of the action otherwise
    discrete       True: Boltzmann policy over the critics, no actor; False: tanh-Gaussian actor
    critic_width   units of each of the critics' two hidden layers
    actor_width    units of each of the actor's two hidden layers
    bins           outputs of a critic for one action: HL-Gauss's bins, or TQC's quantiles
    v_max          HL-Gauss's bins are centred evenly on [-v_max, v_max] (scaled reward units)
    init_std       standard deviation before tanh that a fresh actor has everywhere
    head           what these outputs are, one of HEADS
    image          (channels, height, width) of an input that is a stack of uint8 images, seen by an
                   encoder first, their mean taken away; None: float32 vectors, normalised
    """

    obs_dim: int
    action_dim: int
    discrete: bool
    critic_width: int = 128
    actor_width: int = 128
    bins: int = 101
    v_max: float = 5.0
    init_std: float = 0.37
    head: str = "hl_gauss"
    image: tuple[int, int, int] | None = None

    @property
    def features(self) -> int:
        """Components of what critics and actor see: the vector, or the encoder's output."""
        return self.obs_dim if self.image is None else FEATURES

    @property
    def scales(self) -> int:
        """Components with a running scale beside their mean: those of a vector, no image's."""
        return self.obs_dim if self.image is None else 0

    @property
    def critic_in(self) -> int:
        """Input components of a critic: the features, then the action when continuous."""
        return self.features if self.discrete else self.features + self.action_dim

    @property
    def critic_out(self) -> int:
        """Output components of a critic: one distribution per action when discrete, else one."""
        return self.action_dim * self.bins if self.discrete else self.bins


HEADS = ("hl_gauss", "tqc")  # as sac.head names them; kernels know them by their place
# log std = LOG_STD_MIN + LOG_STD_HALF * (1 + tanh(raw)): range -10..2 (FlashSAC, layer.py)
LOG_STD_MIN = -10.0
LOG_STD_HALF = 6.0
OBS_CLIP = 5.0  # normalised observations are clipped to +-5
LAYER_NORM_EPS = 1e-5
# The encoder of images: (output channels, kernel, stride) of each convolution, then a dense layer
# of FEATURES units with layer norm. Mnih 2015's with half the channels: on a CPU it decides what an
# update costs.
CONVOLUTIONS = ((16, 8, 4), (32, 4, 2), (32, 3, 1))
FEATURES = 256


def output_support(spec: NetSpec) -> F32:
    """(bins,) what a critic's outputs are about: the bins' values, or the quantiles' levels."""
    if spec.head == "tqc":
        return ((np.arange(spec.bins) + 0.5) / spec.bins).astype(np.float32)
    return np.linspace(-spec.v_max, spec.v_max, spec.bins, dtype=np.float32)


def encoder_shapes(spec: NetSpec) -> dict[str, tuple[int, ...]]:
    """The encoder of images: convolutions (out, in, kernel, kernel) with bias, then w3 as a dense
    layer on (height, width, channels) flattened, with layer norm. Empty for vectors."""
    if spec.image is None:
        return {}
    channels, *size = spec.image
    shapes: dict[str, tuple[int, ...]] = {}
    for layer, (out, kernel, stride) in enumerate(CONVOLUTIONS):
        shapes[f"encoder.w{layer}"] = (out, channels, kernel, kernel)
        shapes[f"encoder.b{layer}"] = (out,)
        channels, size = out, [(n - kernel) // stride + 1 for n in size]
    flat = channels * math.prod(size)
    return shapes | {
        "encoder.w3": (flat, FEATURES), "encoder.b3": (FEATURES,),
        "encoder.g3": (FEATURES,), "encoder.h3": (FEATURES,),
    }  # fmt: skip


def value_shapes(spec: NetSpec) -> dict[str, tuple[int, ...]]:
    """What the critics' loss trains and the target average follows: critics, then encoder."""
    return critic_shapes(spec) | encoder_shapes(spec)


def all_shapes(spec: NetSpec) -> dict[str, tuple[int, ...]]:
    """A learner's parameters: critics, encoder, actor."""
    return value_shapes(spec) | actor_shapes(spec)


def critic_shapes(spec: NetSpec) -> dict[str, tuple[int, ...]]:
    """Both critics, index 0 = critic. Layer l: x @ w + b, then layer norm with scale g, shift h."""
    i, w, o = spec.critic_in, spec.critic_width, spec.critic_out
    return {
        "critic.w0": (2, i, w), "critic.b0": (2, w), "critic.g0": (2, w), "critic.h0": (2, w),
        "critic.w1": (2, w, w), "critic.b1": (2, w), "critic.g1": (2, w), "critic.h1": (2, w),
        "critic.w2": (2, w, o), "critic.b2": (2, o),
    }  # fmt: skip


def actor_shapes(spec: NetSpec) -> dict[str, tuple[int, ...]]:
    """The actor of continuous actions; columns of the last layer: means, then raw log stds."""
    if spec.discrete:
        return {}
    i, w, o = spec.features, spec.actor_width, 2 * spec.action_dim
    return {
        "actor.w0": (i, w), "actor.b0": (w,), "actor.g0": (w,), "actor.h0": (w,),
        "actor.w1": (w, w), "actor.b1": (w,), "actor.g1": (w,), "actor.h1": (w,),
        "actor.w2": (w, o), "actor.b2": (o,),
    }  # fmt: skip


def size_of(shapes: dict[str, tuple[int, ...]]) -> int:
    """Number of float32 values that `shapes` take, packed without gaps in the order of the dict."""
    return sum(math.prod(s) for s in shapes.values())


def views(flat: Flat, shapes: dict[str, tuple[int, ...]]) -> dict[str, Flat]:
    """Name -> view into `flat` (1-d float32, at least size_of(shapes) long). No copy."""
    out: dict[str, Flat] = {}
    at = 0
    for name, shape in shapes.items():
        n = math.prod(shape)
        out[name] = flat[at : at + n].reshape(shape)
        at += n
    return out


def is_matrix(name: str) -> bool:
    """Weight decay applies to matrices only, never to biases and layer norms."""
    return name.split(".")[1].startswith("w")


def _orthogonal(rng: np.random.Generator, rows: int, cols: int, gain: float) -> F32:
    """Orthogonal rows or columns (Saxe 2014), float32 (rows, cols)."""
    a = rng.standard_normal((max(rows, cols), min(rows, cols)))
    q, r = np.linalg.qr(a)
    q *= np.sign(np.diag(r))
    return np.ascontiguousarray(gain * (q if rows >= cols else q.T), dtype=np.float32)


def initialise(spec: NetSpec, rng: np.random.Generator) -> F32:
    """Fresh parameters, one flat float32 vector in the order of all_shapes.

    Hidden layers and convolutions orthogonal with gain sqrt 2; the critics' last layer zero, so Q
    starts at 0 everywhere; the actor's last layer 0.01 orthogonal with its std bias set to
    `init_std`.
    """
    shapes = all_shapes(spec)
    flat = np.zeros(size_of(shapes), dtype=np.float32)
    gain = math.sqrt(2.0)
    for name, p in views(flat, shapes).items():
        net, kind = name.split(".")
        rows, cols = (1, *p.shape)[-2:]
        if kind[0] == "g":
            p[...] = 1.0
        elif net == "encoder" and kind[0] == "w":
            rows = math.prod(p.shape[:1] if p.ndim == 4 else p.shape[:-1])
            p[...] = _orthogonal(rng, rows, p.size // rows, gain).reshape(p.shape)
        elif kind in ("w0", "w1"):
            for matrix in p.reshape(-1, *p.shape[-2:]):
                matrix[...] = _orthogonal(rng, rows, cols, gain)
        elif name == "actor.w2":
            p[...] = _orthogonal(rng, rows, cols, 0.01)
        elif name == "actor.b2":
            raw = (math.log(spec.init_std) - LOG_STD_MIN) / LOG_STD_HALF - 1
            p[spec.action_dim :] = math.atanh(raw)
    return flat


# A published policy is one flat float32 vector: this head, then the network that acts (critics when
# discrete, actor when continuous), the encoder of images, and critics that only judge.
def policy_shapes(spec: NetSpec) -> dict[str, tuple[int, ...]]:
    """Layout of a published snapshot: statistics and temperature travel with the weights."""
    head: dict[str, tuple[int, ...]] = {
        "obs_mean": (spec.obs_dim,),
        "obs_scale": (spec.scales,),  # 1 / deviation
        "temperature": (1,),
        "reward_scale": (1,),
    }
    if spec.discrete:
        return head | critic_shapes(spec) | encoder_shapes(spec)
    return head | actor_shapes(spec) | encoder_shapes(spec) | critic_shapes(spec)
