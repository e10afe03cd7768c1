"""Which packages the wheel has: cryoray, and `flows` by a name that clashes with nobody's.

Everything else is in pyproject.toml, which can map a folder to another name only for packages that are listed
one by one.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["cryoray", "cryoray.*"]), "cryoray_flows"],
    package_dir={"cryoray_flows": "flows"},
)
