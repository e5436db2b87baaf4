"""Training data: drawn portraits that speak, and later footage."""
