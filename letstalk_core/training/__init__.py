"""Training: the bundled autoencoder and transformer, from drawn portraits that speak."""
