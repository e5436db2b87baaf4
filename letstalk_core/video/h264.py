"""The encoders of H.264 that a user can choose from. Light: the command line's help and ComfyUI's start read it."""

# No B-frames: packets then lie in the order of the pictures, and joining segments relies on no driver's time stamps.
# As with x264, no key frame in eight seconds but the first.
_ALL = {"bf": "0", "g": "250"}
# Of hardware: ffmpeg's name, and options for about the quality of x264's crf 16, by each maker's own scale. They take
# pictures as nv12.
HARDWARE = {
    "nvenc": ("h264_nvenc", {**_ALL, "rc": "vbr", "cq": "18", "b": "0"}),
    "qsv": ("h264_qsv", {**_ALL, "global_quality": "18"}),
    "amf": ("h264_amf", {**_ALL, "rc": "cqp", "qp_i": "18", "qp_p": "18"}),
    "videotoolbox": (
        "h264_videotoolbox",
        {**_ALL, "flags": "+qscale", "global_quality": str(75 * 118)},
    ),  # 118: 1 of 100
}
ENCODERS = ("x264", *HARDWARE)
