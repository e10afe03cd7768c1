"""Other programs and archives: driven by cryoray, or read from."""
