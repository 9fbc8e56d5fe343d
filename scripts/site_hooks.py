"""MkDocs: what its Markdown does otherwise than GitHub's, and the width of pages of wide tables (mkdocs.yml, hooks)."""


def on_page_markdown(markdown: str, page, **_: object) -> str:
    """GitHub reads Markdown inside <details>; Python-Markdown does where the tag says so."""
    if page.file.src_uri.startswith("results/") and page.file.name != "index":
        page.meta.setdefault("hide", ["toc", "navigation"])
    return markdown.replace("<details><summary>", "<details markdown><summary>")
