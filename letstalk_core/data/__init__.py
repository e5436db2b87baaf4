"""Training data: photographs and drawings that speak, and footage.

source.py says what a source of training clips gives; people/ moves photographs and drawn/ renders drawings with known
motion, speech/ says what they say; preparation/ makes shards of videos of people and footage/ reads them; images.py
holds the pictures for an autoencoder's training.
"""
