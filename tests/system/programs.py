"""How the system tests call RELION, and what they let it read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

#: A classification as small as RELION makes one.
CLASS2D = (
    *(
        "--ctf",
        "--particle_diameter",
        "150",
        "--zero_mask",
        "--flatten_solvent",
        "--norm",
        "--scale",
    ),
    *("--oversampling", "0", "--psi_step", "30", "--offset_range", "2", "--offset_step", "2"),
    *("--tau2_fudge", "2", "--pad", "1", "--j", "1", "--pool", "30", "--random_seed", "1"),
    "--dont_combine_weights_via_disc",
)

#: Run a program of RELION in a folder, and give what it printed; one that fails is a failed test.
Relion = Callable[..., str]


def private_environment(folder: Path) -> dict[str, str]:
    """The environment of a program that starts a Ray of its own, whose token is not in the home."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CRYORAY_")}
    return kept | {"RAY_AUTH_TOKEN_PATH": str(folder / "auth_token")}
