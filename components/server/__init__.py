"""The web server: the page's class, what requests pass, the health check, the process. Imports no tab."""
