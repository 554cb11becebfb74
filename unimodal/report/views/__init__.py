"""Views of the report. Each module turns one kind of thing into the words, coordinates and data URIs that
`report.html.jinja` puts on the page."""
