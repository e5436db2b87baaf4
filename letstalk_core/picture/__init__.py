"""A single picture: from a file to a square portrait, to latents and back, and back into the picture.

portrait.py reads pictures and crops them; face.py finds the face that a crop is aligned by; similarity.py is how the
two lie to each other; autoencoder.py turns images into latents and back, portrait_autoencoder.py with the
portrait's help; paste_back.py puts frames back into the picture that they were cropped from.
"""
