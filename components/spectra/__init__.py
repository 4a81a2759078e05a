"""The Spectra tab: how many directions each part of a layer uses."""
