"""report.html: one self-contained page for a run, readable offline; report.png is written beside it."""

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from policy_decorator.reports.curves import learning_curves
from policy_decorator.reports.facts import Facts, read_facts
from policy_decorator.reports.image import FLIP_WORDS, draw_report, duration, interval, percent, png, points
from policy_decorator.reports.style import DARK, FLIPS, LIGHT
from policy_decorator.runlog import RunFolder, atomic_bytes

VIDEO_BYTES = 25_000_000
"""Films are embedded up to this many bytes in all; the rest is linked, so that the page still opens fast."""
FLIP_SIGNS = {"solved": "\u2713", "fixed": "+", "broken": "\u2212", "failed": "\u00d7"}
MOST_SQUARES = 400


def write_report(run_path: Path | str) -> Path:
    """Writes report.html and report.png into a run folder, finished or not; returns the path of the page.

    Raises UserError when the folder holds no run, a file in it is damaged or the disk is full.
    """
    run = RunFolder.open(run_path)
    facts = read_facts(run)
    atomic_bytes(run.path / "report.png", png(draw_report(run, facts)))
    page = _template().render(
        facts=facts,
        tiles=_tiles(facts),
        curves={"light": _uri(png(learning_curves(run))), "dark": _uri(png(learning_curves(run, DARK)))},
        videos=_videos(run.path),
        pictures=_pictures(run.path),
        flips=_flips(facts),
        counts=_counts(facts),
        blocks=_blocks(run),
        colours={"light": LIGHT, "dark": DARK, "flips": FLIPS},
    )
    atomic_bytes(run.path / "report.html", page.encode())
    return run.path / "report.html"


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    settings: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **settings).get_template("report.html")


def _tiles(facts: Facts) -> list[dict[str, str]]:
    """The headline: word, number, what stands below it, and a class for its colour."""

    def shown(value: float | None, text: Any) -> str:
        return "\u2013" if value is None else text(value)

    flips = facts.flips()
    base, refined, gain = (None if e is None else e.value for e in (facts.base, facts.refined, facts.gain))
    flipped = f"{flips['fixed']} fixed, {flips['broken']} broken" if facts.outcomes else "\u2013"
    steps = facts.counts.get("env_steps")
    rows = (
        ("base policy", shown(base, percent), interval(facts.base), "base"),
        (
            "refined" if facts.finished else "refined so far",
            shown(refined, percent),
            interval(facts.refined),
            "refined",
        ),
        ("gain, percentage points", shown(gain, points), interval(facts.gain, signed=True), "gain"),
        ("flips", flipped, f"of the same {len(facts.outcomes)} episodes" if facts.outcomes else "", "small"),
        ("environment steps", shown(steps, "{:,}".format), "", "small"),
        ("wall time", duration(facts.wall_seconds), "", "small"),
    )
    return [dict(zip(("word", "number", "below", "kind"), row, strict=True)) for row in rows]


def _flips(facts: Facts) -> dict[str, Any]:
    """Squares grouped by outcome, with what a reader hovers; only counts where there are too many to draw."""
    order = list(facts.flips())
    outcomes = sorted(facts.outcomes, key=lambda outcome: order.index(outcome.kind))
    squares = [
        {
            "kind": outcome.kind,
            "sign": FLIP_SIGNS[outcome.kind],
            "title": f"seed {outcome.seed}: {_words(outcome.kind)}",
        }
        for outcome in outcomes[:MOST_SQUARES]
    ]
    legend = [
        {"kind": kind, "sign": FLIP_SIGNS[kind], "word": FLIP_WORDS[kind], "count": count}
        for kind, count in facts.flips().items()
    ]
    return {"squares": squares, "legend": legend, "n": len(outcomes), "hidden": len(outcomes) - len(squares)}


def _words(kind: str) -> str:
    words = {"fixed": "base failed, refined succeeded", "broken": "base succeeded, refined failed"}
    return words.get(kind, FLIP_WORDS[kind])


def _counts(facts: Facts) -> list[tuple[str, str]]:
    words = {
        "base_queries": "queries of the base policy",
        "env_steps": "environment steps",
        "updates": "gradient updates",
    }
    words |= {"episodes": "training episodes"}
    return [(words.get(name, name.replace("_", " ")), f"{count:,}") for name, count in facts.counts.items()]


def _videos(folder: Path) -> list[dict[str, str]]:
    """Films of videos/, smallest first in line for embedding; a picture of the same name is shown before it plays."""
    shown, used = [], 0
    for film in sorted((folder / "videos").glob("*.mp4"), key=lambda path: (path.stat().st_size, path.name)):
        used += film.stat().st_size
        fits = used <= VIDEO_BYTES
        source = _uri(film.read_bytes(), "video/mp4") if fits else quote(f"videos/{film.name}")
        poster = film.with_suffix(".png")
        shown.append(
            {"name": film.stem.replace("_", " "), "source": source, "poster": _uri_of(poster), "embedded": str(fits)}
        )
    return sorted(shown, key=lambda video: video["name"])


def _pictures(folder: Path) -> list[dict[str, str]]:
    """Pictures of videos/ that are no film's poster: the paths drawn where nothing can be rendered."""
    alone = [path for path in sorted((folder / "videos").glob("*.png")) if not path.with_suffix(".mp4").exists()]
    return [{"name": path.stem.replace("_", " "), "source": _uri_of(path)} for path in alone]


def _blocks(run: RunFolder) -> list[tuple[str, str]]:
    """The JSON shown folded at the end."""
    parts = (("summary", run.summary()), ("configuration", run.config()), ("provenance", run.provenance()))
    return [(title, json.dumps(content, indent=2, ensure_ascii=False)) for title, content in parts if content]


def _uri_of(picture: Path) -> str:
    return _uri(picture.read_bytes()) if picture.exists() else ""


def _uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
