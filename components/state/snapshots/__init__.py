"""Files in `assets/` with measurements that the page shows before it has measured anything itself."""
