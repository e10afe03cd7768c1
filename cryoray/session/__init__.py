"""A collection as it happens: what is watched, what was judged, what people said of it."""
