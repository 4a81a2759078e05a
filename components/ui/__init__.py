"""Building blocks of the page: figures, the chart component, labels, formats, downloads. Imports no tab."""
