"""A small HTTP server for one model: JSON for texts, multipart for pictures and sounds, a page to try it.

| module | what |
|---|---|
| `batching` | requests that come together are answered together, in the shapes that are compiled |
| `limits` | what stands before the application: sizes, tokens, headers |
| `app` | the routes |
| `page.html`, `page.css`, `page.js` | the page: needs no network, works at 400 px and without a mouse |
"""
