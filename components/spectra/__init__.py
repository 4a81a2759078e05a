"""The Spectra tab: explained variance, effective rank per head, and energy per rotary pair."""
