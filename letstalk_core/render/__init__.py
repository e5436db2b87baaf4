"""A video file of any length, rendered in segments, so that it can be interrupted and resumed.

job.py holds everything that decides a video; render.py makes the file from it; estimate.py tells before what it will
take; segments.py keeps the finished segments in a work folder; progress.py shows a rendering on the terminal.
"""
