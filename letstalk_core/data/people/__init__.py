"""Photographs of people who do not exist, moved as puppets: training data whose every control is known.

portraits.py loads the people of assets/people; mixing.py and looks.py make thousands of them, cast.py draws one by
seed; puppet.py moves one, by the warps of fields.py and expressions.py, head.py, mouth.py and eyes.py; gestures.py says
what it does from frame to frame, pictures.py renders many, talking.py keeps clips of puppets that speak.
"""
