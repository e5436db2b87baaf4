"""The filters: what of a clip is judged, against which threshold, and how a rejection is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .preparation_settings import Thresholds

Measures = dict[str, float | None]  # by name; None where something was not measured


@dataclass(frozen=True)
class Filter:
    """One judgement. name: for people. measure: what is judged. sentence: the reason, of the value and the limit.

    least, most: the names of thresholds; a value outside is a rejection, and one that was not measured is none.
    """

    name: str
    measure: str
    sentence: str
    least: str | None = None
    most: str | None = None
    value: Callable[[float], float] = float

    def reason(self, measures: Measures, thresholds: Thresholds) -> str | None:
        """Why a clip is rejected, or None."""
        measured = measures.get(self.measure)
        if measured is None:
            return None
        value = self.value(measured)
        for limit, wrong in ((self.least, lambda x, y: x < y), (self.most, lambda x, y: x > y)):
            if limit is not None and wrong(value, getattr(thresholds, limit)):
                return self.sentence.format(value=value, limit=getattr(thresholds, limit))
        return None


# In the order in which they are judged: the cheap ones first.
FILTERS = (
    Filter("length", "seconds", "It lasts {value:.2f} s, less than {limit:g} s.", "seconds"),
    Filter("a face in every frame", "face_share", "Only {value:.0%} of its frames have a face.", "face_share"),
    Filter("one face", "faces", "It shows {value:.0f} faces.", most="faces"),
    Filter("size", "eyes", "The face is small: {value:.0f} pixels between the eyes, less than {limit:g}.", "eyes"),
    Filter("the whole face", "inside", "The face is outside the picture or the square in some of its frames "
           "(inside in {value:.0%}).", "inside"),
    Filter("sharpness", "sharpness", "It is blurred: sharpness {value:.2f}, less than {limit:g}.", "sharpness"),
    Filter("darkness", "brightness", "It is dark: mean grey {value:.0f}, less than {limit:g}.", "darkest"),
    Filter("glare", "brightness", "It is glaring: mean grey {value:.0f}, more than {limit:g}.", most="brightest"),
    Filter("motion", "motion", "It is a still picture: motion {value:.2f}, less than {limit:g}.", "motion"),
    Filter("speech", "speech", "Somebody speaks in {value:.0%} of it, less than {limit:.0%}.", "speech"),
    Filter("lips, lag", "lips_lag", "The sound is off the lips by {value:.0f} frames, more than {limit:g}.",
           most="lips_lag", value=abs),
    Filter("lips, r", "lips_r", "The sound is not of this mouth: r {value:.2f}, less than {limit:g}.", "lips_r"),
    Filter("SyncNet, lag", "sync_lag", "SyncNet finds the sound off the lips by {value:.0f} frames, more than "
           "{limit:g}.", most="sync_lag", value=abs),
    Filter("SyncNet, confidence", "sync_c", "SyncNet is not sure that the sound is of this mouth: Sync-C {value:.2f}, "
           "less than {limit:g}.", "sync_c"),
)  # fmt: skip
UNREADABLE = "unreadable"  # in the place of a filter: the video itself


def judge(measures: Measures, thresholds: Thresholds) -> list[tuple[str, str]]:
    """(filter, reason) of everything that speaks against a clip, by what has been measured so far."""
    reasons = ((each.name, each.reason(measures, thresholds)) for each in FILTERS)
    return [(name, reason) for name, reason in reasons if reason is not None]
