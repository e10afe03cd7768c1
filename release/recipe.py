"""``python -m release.recipe``: the conda recipe of this version, from pyproject.toml, as YAML.

Conda's names differ from PyPI's for a few packages; everything else is taken as it stands, so that the
recipe cannot fall behind. Extras are outputs of their own, ``cryoray-EXTRA``.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml

from cryoray.version import __version__

ROOT = Path(__file__).parents[1]
#: What stands where whoever publishes has to write something.
FILL_IN = "FILL_IN"
#: Distributions that conda-forge has under another name.
CALLED = {
    "torch": "pytorch",
}
#: Extras of others that conda-forge has as packages.
EXTRAS = {
    "ray[train,serve,data]": ("ray-train", "ray-serve", "ray-data"),
    "psycopg[binary]": ("psycopg",),
}
#: Extras that a person installs; what builds and tests the project is not among them.
OUTPUTS = (
    "report",
    "notebook",
    "session",
    "select",
    "train",
    "serve",
    "flows",
    "postgres",
    "all",
)


def requirement(text: str, version: str) -> list[str]:
    """A requirement of pyproject.toml as conda writes it."""
    name, extras, bounds = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?(.*)", text.strip()).groups()  # type: ignore[union-attr]
    if name == "cryoray":
        return [f"cryoray-{extra} =={version}" for extra in extras[1:-1].split(",")]
    names = EXTRAS.get(f"{name}{extras or ''}", (CALLED.get(name, name.lower()),))
    return [f"{one} {bounds}".strip() for one in names]


def recipe(sdist: Path | None = None) -> dict[str, Any]:
    """The recipe, in the form of rattler-build and conda-build's successor (schema 1).

    Args:
        sdist: whose digest goes into it; None: it is left to be filled in.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    python = f"python {project['requires-python']}"
    digest = hashlib.sha256(sdist.read_bytes()).hexdigest() if sdist else FILL_IN
    url = f"https://pypi.org/packages/source/c/cryoray/cryoray-{__version__}.tar.gz"
    base = [one for text in project["dependencies"] for one in requirement(text, __version__)]
    programs = [f"{name} = {where}" for name, where in project["scripts"].items()]
    outputs: list[dict[str, Any]] = [
        {
            "package": {"name": "cryoray"},
            "build": {
                "noarch": "python",
                "script": "python -m pip install . --no-deps --no-build-isolation -vv",
                "python": {"entry_points": programs},
            },
            "requirements": {
                "host": [python, "pip", "setuptools >=77"],
                "run": [python, *base],
            },
            "tests": [
                {"python": {"imports": ["cryoray", "cryoray.models.predict"]}},
                {"script": ["cryoray --version"]},
            ],
        }
    ]
    for extra in OUTPUTS:
        wanted = project["optional-dependencies"][extra]
        more = [one for text in wanted for one in requirement(text, __version__)]
        outputs.append(
            {
                "package": {"name": f"cryoray-{extra}"},
                "build": {"noarch": "generic"},
                "requirements": {"run": [f"cryoray =={__version__}", *more]},
            }
        )
    return {
        "schema_version": 1,
        "recipe": {"name": "cryoray", "version": __version__},
        "source": {"url": url, "sha256": digest},
        "build": {"number": 0},
        "outputs": outputs,
        "about": {
            "summary": project["description"],
            "license": project["license"],
            "license_file": "LICENSE",
            "documentation": project.get("urls", {}).get("Documentation", FILL_IN),
            "repository": project.get("urls", {}).get("Source", FILL_IN),
        },
    }


def main() -> None:
    """Print it."""
    given = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    yaml.safe_dump(recipe(given), sys.stdout, sort_keys=False, allow_unicode=True)


if __name__ == "__main__":
    main()
