"""A single picture: from a file to a square portrait, to latents and back, and back into the picture.

portrait.py reads pictures, finds faces and crops; framing.py is the small network that aligns the crop; autoencoder.py
turns images into latents and back; paste_back.py puts frames back into the picture that they were cropped from.
"""
