"""A trained policy as an ONNX model: observation in, the environment's action out.

Built from the weights node by node, so no framework traces anything: normalisation of the
observations, the network, and the scaling onto the environment's actions are all in the model. It
takes what `Policy.predict` takes and gives what that gives, greedily. Opset 17, the first with
LayerNormalization: ONNX Runtime 1.13 and later read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fdql.checkpoint import write_bytes
from fdql.config import ConfigError
from fdql.frames import channels_last
from fdql.play import Policy
from fdql.requirements import install
from fdql.sac.nets import CONVOLUTIONS, LAYER_NORM_EPS, OBS_CLIP, policy_shapes, views

OPSET = 17
IR_VERSION = 8  # of the container, the one that opset 17 came with


def export(policy: Policy, out: Path, *, force: bool = False) -> None:
    """Write `policy` to `out`, atomically.

    Input "observation": (n, *shape of the space) float32; images uint8, (n, stack, *shape) where
    the policy sees several. Output "action": (n, *shape of the action) float32, or (n,) int64 when
    discrete. Raises ConfigError when the file exists and `force` is not given, when it is a folder,
    or when the extra onnx is not installed.
    """
    if out.is_dir():
        raise ConfigError(f"out = {str(out)!r}: is a folder; {str(out / 'policy.onnx')!r} works")
    if out.exists() and not force:
        raise ConfigError(f"out = {str(out)!r} exists; --force overwrites it")
    if not out.parent.is_dir():
        raise ConfigError(f"out = {str(out)!r}: there is no folder {str(out.parent)!r}")
    try:
        import onnx
    except ImportError as error:
        raise ConfigError(
            f"export needs the package onnx ({error}); install the extra 'onnx': {install('onnx')}"
        ) from None
    model = Graph(policy).model()
    onnx.checker.check_model(model, full_check=True)
    write_bytes(out, model.SerializeToString())


class Graph:
    """Nodes and constants of one policy's model, in the order in which they are computed."""

    def __init__(self, policy: Policy) -> None:
        self.policy, self.net, self.env = policy, policy.network.spec, policy.env
        self.weights = views(policy.network.snapshot, policy_shapes(self.net))
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def model(self) -> Any:
        """The whole model, an onnx.ModelProto."""
        from onnx import TensorProto, helper

        env = self.env
        frames = (env.stack,) if env.stack > 1 else ()
        x = self._image_features() if env.image else self._normalised()
        self._discrete(x) if env.discrete else self._continuous(x)
        kinds = (
            (TensorProto.UINT8 if env.image else TensorProto.FLOAT),
            (TensorProto.INT64 if env.discrete else TensorProto.FLOAT),
        )
        obs = helper.make_tensor_value_info("observation", kinds[0], ["n", *frames, *env.obs_shape])
        action = helper.make_tensor_value_info("action", kinds[1], ["n", *env.action_shape])
        graph = helper.make_graph(self.nodes, "policy", [obs], [action], self.constants)
        model = helper.make_model(
            graph, producer_name="fdql", ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET)],
        )  # fmt: skip
        facts = {k: str(self.policy.facts.get(k)) for k in ("updates", "env_steps")}
        helper.set_model_props(model, {"env": env.env, **facts})
        return model

    def _constant(self, values: NDArray[Any] | np.generic) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def _add(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        """Append a node. Returns the name of its output."""
        from onnx import helper

        name = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def _reshaped(self, x: str, *shape: int, out: str = "") -> str:
        return self._add("Reshape", x, self._constant(np.array(shape, dtype=np.int64)), out=out)

    def _normalised(self) -> str:
        """Vectors: clip((x - mean) * scale, -5, 5)."""
        x = self._reshaped("observation", -1, self.net.obs_dim)
        x = self._add("Sub", x, self._constant(self.weights["obs_mean"]))
        x = self._add("Mul", x, self._constant(self.weights["obs_scale"]))
        return self._clipped(x, OBS_CLIP)

    def _clipped(self, x: str, most: float) -> str:
        low, high = (self._constant(np.float32(v)) for v in (-most, most))
        return self._add("Clip", x, low, high)

    def _image_features(self) -> str:
        """Images: the encoder, as sac/encoder.py has it, in float32."""
        env, w = self.env, self.weights
        assert env.image is not None
        assert self.net.image is not None
        x = self._reshaped("observation", -1, *env.obs_shape)  # every frame of every stack
        if channels_last(env.obs_shape, env.image):
            x = self._add("Transpose", x, perm=[0, 3, 1, 2])
        x = self._reshaped(x, -1, *self.net.image)
        x = self._add("Cast", x, to=1)  # float32
        x = self._add("Sub", x, self._constant(w["obs_mean"].reshape(self.net.image)))
        for i, (_, kernel, stride) in enumerate(CONVOLUTIONS):
            weight = w[f"encoder.w{i}"] / np.float32(255.0 if i == 0 else 1.0)
            names = self._constant(weight), self._constant(w[f"encoder.b{i}"])
            x = self._add(
                "Conv", x, *names, kernel_shape=[kernel, kernel], strides=[stride, stride]
            )
            x = self._add("Relu", x)
        x = self._add("Transpose", x, perm=[0, 2, 3, 1])
        x = self._reshaped(x, -1, len(w["encoder.w3"]))
        return self._layer(x, *(w[f"encoder.{k}3"] for k in "wbgh"))

    def _layer(
        self, x: str, w: NDArray[Any], b: NDArray[Any], g: NDArray[Any], h: NDArray[Any]
    ) -> str:
        """relu(layer norm(x w + b))."""
        x = self._dense(x, w, b)
        names = self._constant(g), self._constant(h)
        x = self._add("LayerNormalization", x, *names, axis=-1, epsilon=LAYER_NORM_EPS)
        return self._add("Relu", x)

    def _dense(self, x: str, w: NDArray[Any], b: NDArray[Any]) -> str:
        return self._add("Gemm", x, self._constant(w), self._constant(b))

    def _network(self, x: str, net: str, k: int | None) -> str:
        """The outputs of the actor, or of critic k."""
        p = {n.partition(".")[2]: v for n, v in self.weights.items() if n.startswith(f"{net}.")}
        if k is not None:
            p = {n: v[k] for n, v in p.items()}
        for i in "01":
            x = self._layer(x, *(p[f"{kind}{i}"] for kind in "wbgh"))
        return self._dense(x, p["w2"], p["b2"])

    def _discrete(self, x: str) -> None:
        """argmax over actions of both critics' mean value, by the environment's numbers."""
        values = []
        for k in (0, 1):
            logits = self._reshaped(
                self._network(x, "critic", k), -1, self.net.action_dim, self.net.bins
            )
            if self.net.head == "tqc":  # its value is the mean of its quantiles
                values.append(self._add("ReduceMean", logits, axes=[-1], keepdims=0))
            else:
                p = self._add("Softmax", logits, axis=-1)
                values.append(self._add("MatMul", p, self._constant(self.policy.network.support)))
        best = self._add("ArgMax", self._add("Add", *values), axis=-1, keepdims=0)
        start = self._constant(np.int64(self.env.action_start))
        self._add("Add", best, start, out="action")

    def _continuous(self, x: str) -> None:
        """tanh of the mean, scaled onto the bounds step by step as fdql.envs.ActionScale does, in
        float64: low + (x + 1) half never leaves them, half x + (low + half) does by rounding. So
        does ONNX Runtime's own tanh, which reaches 1 + 2e-7.
        """
        low, one = np.asarray(self.env.low, dtype=np.float64), np.float64(1)
        half = (np.asarray(self.env.high, dtype=np.float64) - low) / 2
        means = np.arange(self.net.action_dim, dtype=np.int64)
        x = self._add("Gather", self._network(x, "actor", None), self._constant(means), axis=1)
        x = self._clipped(self._add("Tanh", x), 1.0)
        x = self._add("Cast", x, to=11)  # float64
        x = self._add("Mul", self._add("Add", x, self._constant(one)), self._constant(half))
        x = self._add("Cast", self._add("Add", x, self._constant(low)), to=1)
        self._reshaped(x, -1, *self.env.action_shape, out="action")
