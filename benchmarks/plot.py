"""Charts as SVG, written by hand: what the benchmarks draw needs no library."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
import math
from typing import Final

_WIDTH: Final = 760
_HEIGHT: Final = 340
_LEFT: Final = 56
_RIGHT: Final = 16
_TOP: Final = 64
_BOTTOM: Final = 36
_GAP: Final = 0.25
"""Share of a group's width that is left free."""
_FONT: Final = 'font-family="sans-serif" font-size="12" fill="#212121"'
_COLOURS: Final = ("#1565c0", "#90caf9", "#ef6c00", "#616161")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Bars in groups on a logarithmic scale. None: no value, shown as such."""

    title: str
    unit: str
    groups: Sequence[str]
    series: Mapping[str, Sequence[float | None]]
    """By name, a value for each group."""

    def svg(self) -> str:
        """Draw it."""
        values = [value for series in self.series.values() for value in series if value is not None and value > 0]
        low = math.floor(math.log10(min(values, default=1.0)))
        high = max(math.ceil(math.log10(max(values, default=1.0))), low + 1)
        plot = _HEIGHT - _TOP - _BOTTOM

        def y(value: float) -> float:
            return _TOP + plot * (high - math.log10(max(value, 10.0**low))) / (high - low)

        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" {_FONT}>',
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
            _text(_LEFT, 20, self.title, 'font-size="15" font-weight="bold"'),
        ]
        for exponent in range(low, high + 1):
            line = y(10.0**exponent)
            parts.append(
                f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{line:.1f}" y2="{line:.1f}" stroke="#e0e0e0"/>'
            )
            parts.append(_text(_LEFT - 6, line + 4, f"{10.0**exponent:g} {self.unit}", 'text-anchor="end"'))
        group_width = (_WIDTH - _LEFT - _RIGHT) / max(len(self.groups), 1)
        bar = group_width * (1 - _GAP) / max(len(self.series), 1)
        for place, group in enumerate(self.groups):
            centre = _LEFT + (place + 0.5) * group_width
            parts.append(_text(centre, _HEIGHT - 12, group, 'text-anchor="middle"'))
        for number, (name, series) in enumerate(self.series.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            legend = _LEFT + number * 230
            parts.append(f'<rect x="{legend}" y="32" width="12" height="12" fill="{colour}"/>')
            parts.append(_text(legend + 18, 42, name))
            for place, value in enumerate(series):
                x = _LEFT + place * group_width + group_width * _GAP / 2 + number * bar
                top = _HEIGHT - _BOTTOM if value is None else y(value)
                parts.append(
                    f'<rect x="{x:.1f}" y="{top:.1f}" width="{bar - 2:.1f}" '
                    f'height="{_HEIGHT - _BOTTOM - top:.1f}" fill="{colour}"/>'
                )
                label = "none" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"
                parts.append(_text(x + bar / 2 - 1, top - 4, label, 'text-anchor="middle" font-size="10"'))
        return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, attributes: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" {attributes}>{escape(text)}</text>'
