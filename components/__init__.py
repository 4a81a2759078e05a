"""The page: a folder for every tab, and below these what they share. Installed as `intraslice_explorer`."""
