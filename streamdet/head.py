"""The second half of a block model: from the sums of a window's blocks to its score."""

from typing import Final

import numpy as np

from streamdet import sessions
from streamdet.audio import Samples
from streamdet.blocks import ABSENT_LOGIT
from streamdet.bundle import Bundle
from streamdet.errors import BundleError
from streamdet.providers import CPU

INPUT: Final = "sums"
OUTPUT: Final = "score"


class Head:
    """An onnxruntime session of its own, always on the CPU: it adds up a few thousand numbers a window."""

    def __init__(self, bundle: Bundle) -> None:
        """Load the head of a block bundle.

        Raises:
            BundleError: the file is not what the manifest says, or not what docs/bundle.md says.
        """
        name = str(bundle.manifest.model.head)
        graph = bundle.read_verified(name)[name]
        # One thread: waking a second one takes longer than the sums do.
        self._session: Final = sessions.load("model.head", name, graph, sessions.settings(1), [CPU])
        self._blocks: Final = bundle.manifest.blocks
        self.sums: Final = self._checked_shapes()
        """Numbers that the model must give for each block, S."""

    def __call__(self, sums: Samples) -> Samples:
        """Score windows by the sums of their blocks.

        Args:
            sums: float32 `(B, N, S)`; an absent block's largest logit is `ABSENT_LOGIT`, the rest 0.

        Returns:
            raw CM scores `(B,)`, higher = more bona fide.
        """
        scores: Samples = self._session.run([OUTPUT], {INPUT: sums})[0]
        return scores

    def warm_up(self, sizes: tuple[int, ...]) -> None:
        """Meet every size of batch once, in windows of one block.

        Raises:
            BundleError: it gives something else than one score a window.
        """
        for size in sizes:
            sums = np.zeros((size, self._blocks, self.sums), np.float32)
            sums[:, :-1, 0] = ABSENT_LOGIT
            sums[:, -1, 1] = 1.0  # one frame of weight 1
            if (shape := self(sums).shape) != (size,):
                raise BundleError.of("head output shape", shape, f"({size},): one score a window")

    def _checked_shapes(self) -> int:
        """Refuse a head that is not what docs/bundle.md says."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [node.name for node in inputs] != [INPUT]:
            raise BundleError.of("head inputs", [node.name for node in inputs], f"only {INPUT!r}")
        if OUTPUT not in [node.name for node in outputs]:
            raise BundleError.of("head outputs", [node.name for node in outputs], f"{OUTPUT!r} among them")
        shape, kind = inputs[0].shape, inputs[0].type
        if kind != "tensor(float)":
            raise BundleError.of("head input type", kind, "tensor(float): float32")
        wide = len(shape) == 3 and isinstance(shape[2], int) and shape[2] >= 4 and shape[2] % 2 == 0
        if not wide or isinstance(shape[0], int) or shape[1] != self._blocks:
            raise BundleError.of(
                "head input shape", shape, f"a dynamic batch of {self._blocks} blocks of 2 + 2 D sums each"
            )
        return int(shape[2])
