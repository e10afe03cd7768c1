"""Puts the hashes that `make hashes` collected into the files that `make install-hashed` takes."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALL = ROOT / "constraints-hashes.txt"
#: torch, of which there are two kinds, and what each needs.
CPU, CUDA = ROOT / "constraints-hashes-cpu.txt", ROOT / "constraints-hashes-cuda.txt"


def read(file: Path) -> dict[str, tuple[str, list[str]]]:
    """By name: the version, and the hashes of its files."""
    found: dict[str, tuple[str, list[str]]] = {}
    hashes: list[str] = []
    for line in file.read_text().splitlines():
        words = line.rstrip("\\ ").strip()
        if words.startswith("--hash="):
            hashes.append(words.removeprefix("--hash="))
        elif "==" in words and not words.startswith("#"):
            name, _, version = words.partition("==")
            hashes = []
            found[name.strip()] = (version.strip(), hashes)
    return found


def write(file: Path, pins: dict[str, tuple[str, list[str]]]) -> None:
    """Write pins with their hashes below what the file says of itself."""
    lines = [line for line in file.read_text().splitlines() if line.startswith("#")]
    for name, (version, hashes) in pins.items():
        lines += [f"{name}=={version} \\", *(f"    --hash={one} \\" for one in hashes)]
        lines[-1] = lines[-1].removesuffix(" \\")
    file.write_text("\n".join(lines) + "\n")


def main(collected: Path) -> None:
    """Renew the files; that of torch for CPUs where its wheel was found."""
    pins, cuda = read(collected / "all.txt"), read(collected / "cuda.txt")
    del pins["torch"]
    write(ALL, pins)
    write(CUDA, {name: pin for name, pin in cuda.items() if name not in pins})
    wheels = sorted((collected / "torch").glob("torch-*+cpu-*.whl"))
    if wheels:
        of = [f"sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}" for wheel in wheels]
        write(CPU, {"torch": (wheels[0].name.split("-")[1], of)})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
