"""Boots images in virtual machines: Secure Boot with the keys of the image, a TPM, sticks that are plugged in, power that is cut."""
