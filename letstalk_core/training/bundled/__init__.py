"""The models that this repository ships, from nothing: puppets of people who do not exist, drawings, synthetic speech.

train_portraits.py trains the bundled model: train_ear.py a head start for its audio projection,
train_portrait_autoencoder.py its autoencoder, then the transformer. train_faces.py trains the networks that find faces.
All of it for a given time (timed.py). import_whisper.py takes what audio/whisper.py needs of Whisper.
"""
