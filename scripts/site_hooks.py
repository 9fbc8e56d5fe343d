"""MkDocs: what its Markdown does otherwise than GitHub's (mkdocs.yml, hooks)."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """GitHub reads Markdown inside <details>; Python-Markdown does where the tag says so."""
    return markdown.replace("<details><summary>", "<details markdown><summary>")
