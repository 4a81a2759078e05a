"""What the page opens with: files in `assets/`, measured once on the default model."""
