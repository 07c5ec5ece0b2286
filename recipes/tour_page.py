"""The page that a tour writes: one file of HTML with its pictures inside."""

import base64
import html
from pathlib import Path

FOLDER = "This run's files: "
HEAD = (
    "<!doctype html><meta charset=utf-8><title>lightning_plasticity</title><style>body{font:16px sans-serif;"
    "max-width:60em;margin:2em auto} img{max-width:49%} pre{overflow:auto}</style>"
)


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
