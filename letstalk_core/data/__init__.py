"""Training data: drawn portraits that speak, and footage.

source.py says what a source of training clips gives; drawn/ renders portraits with known motion and speech/ what they
say; footage/ prepares and reads videos of people; images.py holds the pictures for an autoencoder's training.
"""
