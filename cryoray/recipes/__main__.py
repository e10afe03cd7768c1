"""``python -m cryoray.recipes``: make the ensembles that ship."""

import typer

from cryoray.recipes.build import main

typer.run(main)
