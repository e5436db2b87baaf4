"""Video of any length as clips, and video files.

clips.py samples one clip after the other; memory.py is what each clip hands to the next, and controls.py decides when
the portrait blinks and what else it is asked for. writer.py writes video files with sound, reader.py reads them.
render/ makes whole files with these.
"""
