"""Drawn portraits that speak, rendered from seeds: training data whose every control is known.

motion.py makes the controls of each frame; avatars.py chooses and paints a person with the shapes of canvas.py;
drawing.py draws the frames; talking_clips.py renders clips with their speech, stills.py single pictures.
"""
