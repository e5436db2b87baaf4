"""Defaults and ranges of what users choose for a video, typed once: the command line and ComfyUI's nodes need them
before anything heavy is imported.

What a model was trained for is in config.py; samplers, steps, guidance and the ranges of its controls are there too.
"""

BLINKS = 16.0  # a minute, as people do
MOST_BLINKS, MOST_HEAD_MOTION = 60.0, 2.0
MOST_ARTICULATION = 3.0  # above 3.2 what is nearer to silence would overtake what is further
FACE_MARGIN = 1.42  # side of the square that is cut around a face / side of an average face box
LEAST_SIZE, MOST_SIZE = 64, 1024  # pixels along a side of a square video
