"""Pages of the site that are files of the repository: the README is its first page."""

from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def on_files(files, config):
    """Adds them, with links to docs/ made relative to it."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, **others):
    """Links between files of the repository, which work where the files are read, become links between pages."""
    for source, page in PAGES.items():
        for link in (source, f"../{source}"):
            markdown = markdown.replace(f"]({link}", f"]({page}")
    return markdown
