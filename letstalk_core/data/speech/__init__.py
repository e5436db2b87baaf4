"""Synthetic speech with known phonemes, and the mouth that speaks it: training data in any amount.

sentences.py has the texts; synthesis.py speaks them with espeak-ng (espeak.py), flite or the neural voices of
natural.py, whose utterances utterances.py keeps; visemes.py turns phonemes into the mouth's motion; augment.py disturbs
recordings, with noise and music of background.py; spoken_clips.py puts it all together from one seed, and pairs.py
makes many.
"""
