"""Gang jobs: ranks that train together, and sweeps of them."""
