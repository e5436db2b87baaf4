"""Recordings of speech, and the features of them that the model hears (paper, Section 3.1).

recording.py reads any media file's sound as it is needed; encoder.py turns it into features, window by window, with
whisper.py (the bundled model's encoder), mel.py or wav2vec2.py (the paper's), the first two at a level that loudness.py
measures; load_encoder.py chooses the encoder by its name or file.
"""
