"""All five systems, small, one after the other, and one page that shows what came of it.

    python recipes/tour.py                          about five minutes on 2 cores, offline
    python recipes/tour.py --only=[hippocampus]     one stop of it

Each stop is a recipe's own command. The page `runs/tour/overview.html`, one file, is written anew after each.
How each was made small is in tour.yaml: the numbers are below those of the full recipes.
"""

import shlex
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, CompletedProcess, Popen

from tour_page import HEAD, section

from lightning_plasticity.cli import run_function

RECIPES = Path(__file__).resolve().parent


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
    page, sections, failed = Path(output, "overview.html"), [], []
    chosen = {name: stop for name, stop in stops.items() if only is None or name in only}
    page.parent.mkdir(parents=True, exist_ok=True)
    for number, (name, stop) in enumerate(chosen.items(), 1):
        print(f"[{number}/{len(chosen)}] {stop.title}: python recipes/{stop.command}", flush=True)
        start, done = time.monotonic(), run(stop, output)
        if done.returncode:
            failed.append(name)
            print(f"    failed:\n{(done.stdout + done.stderr)[-2000:]}")
        sections.append(section(stop, done))
        page.write_text(HEAD + "\n".join(sections), encoding="utf-8")
        print(f"    {time.monotonic() - start:.0f} s", flush=True)
    print(f"One page of it all: {page}")
    if failed:
        raise SystemExit(f"tour.py: error: {', '.join(failed)} did not end well; the reason is above")


def run(stop, output):
    """The recipe as a process of its own, so that a tour is what its reader can do by hand."""
    script, *arguments = shlex.split(f"{stop.command} --trainer.default_root_dir={output} --wandb=false")
    command = [sys.executable, RECIPES / script, *arguments]
    with Popen(command, stdout=PIPE, stderr=PIPE, encoding="utf-8") as child:
        try:
            said, errors = child.communicate()
        except KeyboardInterrupt:  # the recipe hears it too: let it save, and say how it goes on
            raise SystemExit(f"{child.communicate()[0][-400:]}\ntour.py: interrupted") from None
    return CompletedProcess(command, child.returncode, said, errors)


if __name__ == "__main__":
    run_function(tour, __file__)
