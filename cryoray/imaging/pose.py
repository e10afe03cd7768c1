"""Where a particle lies: Euler angles as RELION has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rotations(angles: NDArray[np.floating]) -> NDArray[np.floating]:
    """RELION's Euler matrices (``Euler_angles2matrix``) of rot, tilt, psi in degrees: [n, 3] to [n, 3, 3]."""
    (ca, cb, cg), (sa, sb, sg) = np.cos(np.radians(angles.T)), np.sin(np.radians(angles.T))
    return np.stack(
        [
            np.stack([cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb], -1),
            np.stack([-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb], -1),
            np.stack([sb * ca, sb * sa, cb], -1),
        ],
        -2,
    )
