"""Where work runs: this process or Ray. Beside `serving`, the only package that knows Ray."""
