"""A run folder, or the figures of a merge, enters; one self-contained HTML file leaves.

`load` reads the run's files, `plots` makes them small enough to draw, `page` puts them into the template with
`page.css`, `charts.js` and `page.js`; `merge` is the page of a merge, `scan` of a scan. Text reaches the page as JSON
and is inserted as text only.
"""
