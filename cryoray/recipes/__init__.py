"""How the ensembles that ship are made: simulated, prepared, trained, measured, written."""
