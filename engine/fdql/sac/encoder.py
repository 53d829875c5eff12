"""The image encoder of a published policy, for acting. Imported only where there are images: torch
takes seconds to import. Stage 7 of 8, `infer`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from fdql.sac.forward import centred, encode
from fdql.sac.kernels_images import channels_last
from fdql.sac.nets import F32, NetSpec


class Encoder:
    """Features of images; reads the parameters where they are, so that a new policy is seen.

    spec     has an image
    network  name -> float32 view of the snapshot, nets.encoder_shapes among them
    """

    def __init__(self, spec: NetSpec, network: dict[str, F32]) -> None:
        assert spec.image is not None
        self._image = spec.image
        self._network = {k: torch.from_numpy(v) for k, v in network.items() if k[:7] == "encoder"}

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> F32:
        """(n, O) uint8, O = channels * height * width -> (n, 256) float32."""
        x = torch.from_numpy(channels_last(images, self._image))
        features: F32 = encode(self._network, centred(x)).numpy()
        return features
