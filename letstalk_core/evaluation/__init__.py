"""Measures of what a model makes: mouth, blinks, borders between clips, pictures.

measures.py computes numbers from frames and readings; meter.py and identity.py are small networks that read a face and
tell people apart; report.py evaluates a model on people and speech that were held_out.py, and on recordings, with
speakers.py against real people's own mouths; drift.py measures how a long video changes. comparison.py puts videos
beside the real clips that they should equal: clip_sets.py reads or makes them, clip_judges.py and frechet.py give the
numbers, feature_networks.py loads the published networks, comparison_report.py writes it all down.
"""
