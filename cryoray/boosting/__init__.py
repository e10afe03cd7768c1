"""The algorithm, on arrays: filtering, voting, calibration, the operating point. Knows no CNN."""
