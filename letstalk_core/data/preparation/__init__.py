"""Preparation of footage at any size: videos -> shards, a manifest and a report (docs/datasets.md).

preparing.py is the whole, preparation_settings.py what is asked of it. video_sources.py finds videos; video_clips.py
makes the clips of one by the steps in clip_steps.py, with shot_cuts.py, face_tracks.py, clip_measures.py,
ear_opening.py, lip_timing.py and syncnet.py; clip_filters.py decides which are kept; clip_latents.py adds latents to
them, by what clip_drafts.py holds until then; engines.py runs that for many videos; manifest.py and
preparation_report.py say what came of it.
"""
