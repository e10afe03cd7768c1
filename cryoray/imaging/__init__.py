"""Arrays in, arrays out: windowed, rescaled, normalised, augmented images [n, H, W]."""
