"""Reports of a run: Markdown, HTML, JUnit."""
