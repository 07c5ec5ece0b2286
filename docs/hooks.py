"""Pages that are files of the repository: one text, read on the site and beside the code.

A page whose front matter says ``source: path/in/the/repository.md`` shows that file. Its links to other such
files become links to their pages, its images are copied to the site, and links to files that have no page
become plain code.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
SOURCE = re.compile(r"^source: (\S+)$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Note which file of the repository each page shows, and take in the images of those files."""
    config.extra["page_of"] = page_of = {}
    for file in files.documentation_pages():
        if found := SOURCE.search(Path(file.abs_src_path).read_text()):
            page_of[found[1]] = file.src_uri
    for source in page_of:
        for image, _, target in LINK.findall((ROOT / source).read_text()):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
            if image and "://" not in target and files.get_file_from_path(f"images/{path}") is None:
                files.append(File.generated(config, f"images/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the file in the page's place."""
    source = page.meta.get("source")
    if not source:
        return markdown
    page_of, here = config.extra["page_of"], posixpath.dirname(page.file.src_uri)

    def link(match: re.Match) -> str:
        image, text, target = match.groups()
        path, _, anchor = target.partition("#")
        if "://" in target or not path:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{source} links to {target}, which is not there")
        for known in (path, f"{path}/README.md"):
            if known in page_of:
                there = posixpath.relpath(page_of[known], here or ".")
                return f"[{text}]({there}{'#' + anchor if anchor else ''})"
        if image:
            return f"![{text}]({posixpath.relpath(f'images/{path}', here or '.')})"
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return LINK.sub(link, (ROOT / source).read_text())
