"""Measures of what a model makes: mouth, blinks, borders between clips, pictures.

measures.py computes numbers from frames and readings; meter.py and identity.py are small networks that read a face and
tell people apart; report.py evaluates a model on people and speech that were held_out.py, and on recordings, with
speakers.py against real people's own mouths; drift.py measures how a long video changes.
"""
