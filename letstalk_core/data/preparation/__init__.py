"""Preparation of footage at any size: videos -> shards, a manifest and a report (docs/datasets.md).

video_sources.py finds videos; clip_maker.py makes the clips of one, with face_tracks.py, clip_measures.py,
ear_opening.py and lip_timing.py; clip_filters.py decides which are kept; engines.py runs that for many videos;
manifest.py and preparation_report.py say what came of it. preparing.py is the whole.
"""
