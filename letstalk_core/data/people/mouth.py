"""The mouth of a puppet: lips in two layers that part, meet and round, and what is behind them."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from ...picture.ramp import smoothstep
from .fields import Curves
from .geometry import LOWER_LIP, LOWER_ROWS, UPPER_LIP, UPPER_ROWS

# Widths of upper and lower teeth from the middle to one side, of the mouth's half width.
UPPER_WIDTHS = (0.215, 0.165, 0.185, 0.17, 0.16, 0.17)
LOWER_WIDTHS = (0.13, 0.14, 0.16, 0.165, 0.17, 0.19)
ROW_WIDTH, ROW_HEIGHT = 192, 64  # pixels of a drawn row of teeth
ROW_REACH, ROW_DEPTH = 1.2, 16.0  # its half width in half mouths; its height in aligned pixels
LOWER_HEIGHT = 5.5  # of lower teeth, in aligned pixels
SAMPLES = 160  # of a lip's edge


class Teeth:
    """One drawn row of teeth: RGBA [4,ROW_HEIGHT,ROW_WIDTH] from the gums (first row) to the edges of the teeth."""

    def __init__(self, rng: np.random.Generator, widths: tuple[float, ...], height: float, tone: np.ndarray):
        """height: of the front teeth, in aligned pixels; tone: RGB of a tooth in full light."""
        half = np.array(widths) * rng.uniform(0.9, 1.12) * rng.normal(1, 0.04, len(widths))
        right, left = np.cumsum(half), np.cumsum(half * rng.normal(1, 0.03, len(half)))
        edges = np.concatenate([-left[::-1], [0.0], right])  # of the teeth
        x = np.linspace(-ROW_REACH, ROW_REACH, ROW_WIDTH)
        y = (np.arange(ROW_HEIGHT)[:, None] + 0.5) / ROW_HEIGHT * ROW_DEPTH
        tooth = np.clip(np.searchsorted(edges, x) - 1, 0, len(edges) - 2)
        middle, width = (edges[tooth] + edges[tooth + 1]) / 2, edges[tooth + 1] - edges[tooth]
        across = 2 * (x - middle) / width  # -1 .. 1 over a tooth
        place = np.abs(tooth - (len(edges) - 2) / 2)  # 0.5 for the first ones, 1.5, ...
        lengths = height * np.interp(place, (0.5, 1.5, 2.5, 3.5, 5.5), (1.0, 0.95, 0.98, 0.91, 0.82))
        lengths = lengths * rng.normal(1, rng.uniform(0.0, 0.025), len(edges) - 1)[tooth]
        round_edge = rng.uniform(0.03, 0.1) + 0.05 * (place == 2.5)  # canines are pointed
        bottom = lengths * (1 - round_edge * np.abs(across) ** 2.6) - 0.9 * x**2
        gums = rng.uniform(0.6, 1.8) + 0.5 * (1 - np.abs(across) ** 2)[None]
        cover = _ramp((bottom[None] - y) / 0.9) * _ramp((np.abs(edges[[0, -1]]).min() - np.abs(x)) / 0.03)[None]
        line = np.exp(-(((1 - np.abs(across)) * width / 0.028) ** 2)) * rng.uniform(0.04, 0.25)
        own = rng.normal(1, 0.025, len(edges) - 1)[tooth]
        arch = 1 - 0.55 * np.clip(np.abs(x), 0, 1.2) ** 2
        shade = (own * arch * (1 - line))[None] * (0.9 + 0.12 * np.clip(y / height, 0, 1))
        colour = tone[:, None, None] * shade
        pink = _ramp((y - gums) / 0.6)
        colour = colour * pink + np.array([0.62, 0.33, 0.33])[:, None, None] * arch * (1 - pink)
        self.row = torch.from_numpy(np.concatenate([colour, cover[None]]).astype(np.float32))

    def read(self, across: Tensor, down: Tensor) -> Tensor:
        """RGBA [n,4,h,w] at `across` (half mouths from the middle) and `down` (pixels from the gums), [n,h,w] each."""
        within = torch.stack([across / ROW_REACH, 2 * down / ROW_DEPTH - 1], -1)
        row = self.row.expand(len(across), -1, -1, -1)
        colours = functional.grid_sample(row, within, padding_mode="border", align_corners=False)
        shown = (within[..., 0].abs() <= 1) & (within[..., 1] <= 1)  # gums go on above the row
        return torch.cat([colours[:, :3], colours[:, 3:] * shown[:, None]], 1)


def _ramp(x: np.ndarray) -> np.ndarray:
    return np.clip(x + 0.5, 0, 1)


class Inside:
    """What shows between the lips: the cavity, a tongue and two rows of teeth, lit as the face is."""

    def __init__(self, rng: np.random.Generator, skin: Tensor, own_teeth: Tensor | None):
        """skin: RGB [2,3] of the left and the right cheek; own_teeth: RGB [3] where the photograph shows them."""
        light = float((skin.mean() / 0.6).clamp(0.35, 1.15))
        tint = ((skin.mean(0) + 1e-3) / (skin.mean() + 1e-3)).clamp(0.8, 1.25).numpy()  # a look can blacken both cheeks
        tone = np.array([0.93, 0.87, 0.79]) * rng.uniform(0.82, 1.0) * (0.42 + 0.55 * light)
        tone = tone * (1 + rng.uniform(0.0, 0.35) * (tint - 1))
        if own_teeth is not None:
            tone = own_teeth.numpy() * rng.uniform(0.97, 1.08)
        self.height = float(rng.uniform(8.0, 10.5))
        self.upper = Teeth(rng, UPPER_WIDTHS, self.height, tone)
        self.lower = Teeth(rng, LOWER_WIDTHS, LOWER_HEIGHT, tone * 0.8)
        warm = torch.from_numpy(1 + 0.5 * (tint - 1)).float()
        self.cavity = torch.tensor([0.17, 0.055, 0.05]) * (0.4 + 0.6 * light) * warm
        self.tongue = torch.tensor([0.68, 0.34, 0.33]) * (0.35 + 0.6 * light) * float(rng.uniform(0.8, 1.05)) * warm
        self.shown = float(rng.uniform(1.5, 4.5))  # of the upper teeth below the line between closed lips
        self.lower_show = float(rng.uniform(1.5, 3.8))  # of the lower teeth above the lower lip
        sides = skin.mean(1)
        self.slant = float(((sides[1] - sides[0]) / sides.sum().clamp(min=0.1)).clamp(-0.35, 0.35))

    def to(self, device: torch.device | str) -> Inside:
        self.cavity, self.tongue = self.cavity.to(device), self.tongue.to(device)
        self.upper.row, self.lower.row = self.upper.row.to(device), self.lower.row.to(device)
        return self

    def paint(self, places: Tensor, lips: Lips, tongue: Tensor, rest: float) -> Tensor:
        """RGB [n,3,h,w] at places [n,h,w,2]; tongue: its control [n]; rest: height of the line between closed lips."""
        x, y = places.unbind(-1)
        upper, lower = lips.upper(x), lips.lower(x)
        across = lips.across(x)
        picture = self.cavity[None, :, None, None].expand(len(x), -1, *x.shape[1:])
        raised = tongue[:, None, None]
        deep = lips.jaw[:, None, None]
        top = lower - 1.0 - 0.26 * (deep - lips.middle_upper[:, None, None]) - 6.0 * raised
        body = 1 - (across / 0.62) ** 2 - ((y - (top + 6.5)) / 8.0) ** 2
        shade = (0.72 + 0.28 * ((top + 3 - y) / 7 + 1).clamp(0, 1)) * (1 - 0.12 * (-((across / 0.06) ** 2)).exp())
        tongue_cover = (body * 3).clamp(0, 1)
        tongue_colour = self.tongue[None, :, None, None] * shade[:, None]
        picture = torch.lerp(picture, tongue_colour, tongue_cover[:, None])
        # Lower teeth stand upside down on the jaw, most of them behind the lip.
        rows = self.lower.read(across, deep - self.lower_show + LOWER_HEIGHT + 0.9 * across**2 - y)
        shown = rows[:, 3:] * (deep - lips.middle_upper[:, None, None] > 2)[:, None]
        picture = torch.lerp(picture, rows[:, :3], shown)
        picture = torch.lerp(picture, tongue_colour, (tongue_cover * smoothstep((raised - 0.4) / 0.3) * 0.9)[:, None])
        rows = self.upper.read(across, y - (rest + self.shown - self.height))
        picture = torch.lerp(picture, rows[:, :3], rows[:, 3:])
        shadow = 0.42 + 0.58 * ((y - upper) / 5.0).clamp(0, 1)
        shadow = shadow * (0.75 + 0.25 * ((lower - y) / 3.0).clamp(0, 1)) * (1 + self.slant * across.clamp(-1, 1))
        return picture * shadow[:, None]


class Lips:
    """The edges of parted lips as heights over x, of moved points [n,468,2]."""

    def __init__(self, points: Tensor):
        upper, lower = points[:, list(UPPER_ROWS[0])], points[:, list(LOWER_ROWS[0])]
        for end in (0, -1):  # an opening reaches into the corners, half way to where the lips' outer edges meet
            upper[:, end] = lower[:, end] = (upper[:, end] + points[:, UPPER_ROWS[-1][end]]) / 2
        self.left, self.right = upper[:, 0, 0], upper[:, -1, 0]
        # Heights of the upper and the lower lip's edge at x [n,h,w].
        self.upper, self.lower = (Curves(edge, self.left - 8, self.right + 8, SAMPLES) for edge in (upper, lower))
        self.middle = points[:, UPPER_LIP, 0]
        self.middle_upper = points[:, UPPER_LIP, 1]
        self.jaw = points[:, LOWER_LIP, 1]

    def beyond(self, x: Tensor) -> Tensor:
        """Pixels that x lies outside the corners, 0 between them."""
        return torch.maximum(self.left[:, None, None] - x, x - self.right[:, None, None]).clamp(min=0)

    def across(self, x: Tensor) -> Tensor:
        """-1 at the left corner, 0 in the middle of the lips, 1 at the right corner."""
        from_middle = x - self.middle[:, None, None]
        to_left, to_right = (self.middle - self.left)[:, None, None], (self.right - self.middle)[:, None, None]
        return from_middle / torch.where(from_middle < 0, to_left, to_right).clamp(min=6)
