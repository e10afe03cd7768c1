"""Numbers from arrays: accuracy, calibration, and the comparison of two ensembles."""
