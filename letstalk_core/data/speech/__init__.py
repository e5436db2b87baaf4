"""Synthetic speech with known phonemes, and the mouth that speaks it: training data in any amount.

sentences.py has the texts; synthesis.py speaks them with espeak-ng (espeak.py) or flite; visemes.py turns phonemes into
the mouth's motion; augment.py disturbs recordings; spoken_clips.py puts it all together from one seed.
"""
