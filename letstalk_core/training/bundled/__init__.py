"""The models that this repository ships, trained from nothing on drawn people and synthetic speech.

train_avatar.py trains the bundled model: train_small_autoencoder.py its autoencoder, train_projection.py a head start
for its audio projection (known_tokens.py: for a transformer that knows another's), then the transformer.
train_faces.py trains the networks that find faces, train_portrait_autoencoder.py the autoencoder for photographs, both
for a given time (timed.py); import_whisper.py takes what audio/whisper.py needs of Whisper.
"""
