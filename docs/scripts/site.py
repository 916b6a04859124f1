"""A hook of mkdocs for the reference: conventions become lists, papers become links. Docstrings stay plain text."""

import logging
import re

CONVENTION = re.compile(r"<p>(?=Layout: )(.*?)</p>", re.DOTALL)
LABEL = re.compile(r"(?:^|(?<=\.)\s+)(Layout|Box order|Origin|Alignment|Fill):\s")
PAPERS = {
    '"Mask R-CNN", 2017': "https://arxiv.org/abs/1703.06870",
    '"Feature Pyramid Networks for Object Detection", 2017': "https://arxiv.org/abs/1612.03144",
    '"Going Deeper with Convolutions", 2015': "https://arxiv.org/abs/1409.4842",
}


def on_page_content(html: str, page, **_) -> str:
    if page.file.src_uri != "api.md":
        return html
    for paper, url in PAPERS.items():
        words = r"\s+".join(map(re.escape, paper.split()))  # a line may end between them
        html, found = re.subn(words, rf'<a href="{url}">\g<0></a>', html)
        if not found:
            logging.getLogger("mkdocs").warning("docs/scripts/site.py: no docstring names %s", paper)
    return CONVENTION.sub(lambda paragraph: as_list(paragraph[1]), html)


def as_list(paragraph: str) -> str:
    labels_and_texts = LABEL.split(paragraph)[1:]
    items = zip(labels_and_texts[::2], labels_and_texts[1::2], strict=True)
    return "<ul>" + "".join(f"<li><b>{label}:</b> {text}</li>" for label, text in items) + "</ul>"
