"""Figures of the paper (arXiv 2411.16748), for the tables that ours are put beside; nothing here was measured by us."""

from __future__ import annotations

COLUMNS = ("fid", "fvd", "ssim", "e_fid")
QUANTITATIVE = {  # Tables 1 and 2
    "HDTF": {
        "DreamTalk": (105.434, 529.510, 0.406, 3.466),
        "SadTalker": (102.371, 362.634, 0.414, 2.168),
        "AniPortrait": (78.284, 331.117, 0.623, 2.903),
        "Hallo": (45.754, 285.988, 0.698, 2.235),
        "LetsTalk-B": (46.240, 289.385, 0.666, 2.587),
        "LetsTalk-L": (37.134, 219.119, 0.632, 1.962),
    },
    "CelebV-HQ": {
        "DreamTalk": (64.297, 293.905, 0.448, 5.915),
        "SadTalker": (42.017, 77.802, 0.469, 3.372),
        "AniPortrait": (33.408, 107.236, 0.578, 3.722),
        "Hallo": (8.504, 49.431, 0.580, 3.280),
        "LetsTalk-B": (9.585, 36.159, 0.598, 3.349),
        "LetsTalk-L": (7.610, 33.175, 0.584, 3.038),
    },
}
