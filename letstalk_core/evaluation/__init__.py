"""Measures of what a model makes: mouth, blinks, borders between clips, pictures."""
