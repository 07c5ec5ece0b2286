"""All five systems, small, one after the other, and one page that shows what came of it.

    python recipes/tour.py                          about five minutes on 2 cores, offline
    python recipes/tour.py --only=[hippocampus]     one stop of it
Each stop is a recipe's own command. The page `runs/tour/overview.html`, one file, is written anew after each.
How each was made small is in tour.yaml: the numbers are below those of the full recipes.
"""

import base64
import html
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from jsonargparse import auto_cli

RECIPES = Path(__file__).resolve().parent
FOLDER = "This run's files: "
STYLE = "body{font:16px sans-serif;max-width:60em;margin:2em auto} img{max-width:49%} pre{overflow:auto}"


@dataclass
class Stop:
    """A command `<recipe>.py ...`, what it shows, and which of its figures to look at."""

    title: str
    text: str
    command: str
    figures: list[str]


def tour(stops: dict[str, Stop], only: list[str] | None = None, output: str = "runs/tour") -> None:
    """Runs every stop, or some, and shows them on one page."""
    unknown = [name for name in only or [] if name not in stops]
    if unknown:
        raise SystemExit(f"tour.py: error: only={unknown}: the stops are {', '.join(stops)}")
    page, sections, failed = Path(output, "overview.html"), list[str](), list[str]()
    chosen = {name: stop for name, stop in stops.items() if only is None or name in only}
    page.parent.mkdir(parents=True, exist_ok=True)
    for number, (name, stop) in enumerate(chosen.items(), 1):
        print(f"[{number}/{len(chosen)}] {stop.title}: python recipes/{stop.command}", flush=True)
        start, done = time.monotonic(), run(stop, output)
        if done.returncode:
            failed.append(name)
            print(f"    failed:\n{(done.stdout + done.stderr)[-2000:]}")
        sections.append(section(stop, done))
        page.write_text(f"<!doctype html><meta charset=utf-8><style>{STYLE}</style>" + "\n".join(sections))
        print(f"    {time.monotonic() - start:.0f} s", flush=True)
    print(f"One page of it all: {page}")
    if failed:
        raise SystemExit(f"tour.py: error: {', '.join(failed)} did not end well; the reason is above")


def run(stop, output):
    """The recipe as a process of its own, so that a tour is what its reader can do by hand."""
    script, *arguments = shlex.split(stop.command)
    arguments += [f"--trainer.default_root_dir={output}", "--wandb=false"]
    return subprocess.run([sys.executable, RECIPES / script, *arguments], capture_output=True, text=True)


def section(stop, done):
    """A stop's part of the page: what it is, its figures, and what it printed in the end."""
    folder, _, said = done.stdout.rpartition(FOLDER)[2].partition("\n")
    pictures = ""
    if done.returncode:
        said = (done.stdout + done.stderr)[-2000:]
    else:
        for path in (Path(folder.strip(), "figures", f"{name}.png") for name in stop.figures):
            data = base64.b64encode(path.read_bytes()).decode()
            pictures += f'<img alt="{path.stem}" src="data:image/png;base64,{data}">'
    told = html.escape("\n".join(line for line in said.splitlines() if "it/s" not in line).strip("\n"))
    code = f"<code>{html.escape(f'python recipes/{stop.command}')}</code>"
    return f"<h2>{stop.title}</h2><p>{stop.text}</p><p>{code}</p>{pictures}<pre>{told}</pre>"


if __name__ == "__main__":
    auto_cli(tour, default_config_files=[str(Path(__file__).with_suffix(".yaml"))])
