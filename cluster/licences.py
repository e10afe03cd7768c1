"""Lists what is installed beside this Python, with its licence: ``NAME VERSION: LICENCE``."""

from __future__ import annotations

from importlib.metadata import Distribution, distributions


def licence(of: Distribution) -> str:
    """The licence as the package's metadata have it, in one line."""
    about = of.metadata
    if expression := about.get("License-Expression"):
        return str(expression)
    classified = [
        line.rpartition(" :: ")[2]
        for line in about.get_all("Classifier") or ()
        if line.startswith("License :: ") and not line.endswith(":: OSI Approved")
    ]
    if classified:
        return ", ".join(classified)
    text = (about.get("License") or "").strip().splitlines()
    return text[0].strip() if text else "says nothing: see its files"


if __name__ == "__main__":
    found = {(one.metadata["Name"], one.version): licence(one) for one in distributions()}
    for (name, version), what in sorted(found.items(), key=lambda item: item[0][0].lower()):
        print(f"{name} {version}: {what}")
