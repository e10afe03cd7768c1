"""A collection as it happens: what is watched, what was judged, how people labelled it."""
